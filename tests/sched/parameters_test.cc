#include "llmd/sched/parameters.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ParameterReader, ReadsEveryType) {
  const Value value = Parameters({{"b", true},
                                  {"i", 7},
                                  {"d", 0.5},
                                  {"whole", 3},
                                  {"s", "text"},
                                  {"l", Value::MakeList({"x", "y"})},
                                  {"t", "200ms"},
                                  {"nothing", Value()}});
  ParameterReader read("p", value);
  bool b = false;
  std::int64_t i = 0;
  double d = 0, whole = 0, nothing = 4;
  std::string s;
  std::vector<std::string> l;
  absl::Duration t;
  read.Optional("b", &b);
  read.Optional("i", &i);
  read.Optional("d", &d);
  read.Optional("whole", &whole);
  read.Optional("s", &s);
  read.Optional("l", &l);
  read.Optional("t", &t);
  read.Optional("nothing", &nothing);
  ASSERT_TRUE(read.Finish().ok());
  EXPECT_TRUE(b);
  EXPECT_EQ(i, 7);
  EXPECT_EQ(d, 0.5);
  EXPECT_EQ(whole, 3);
  EXPECT_EQ(s, "text");
  EXPECT_THAT(l, ElementsAre("x", "y"));
  EXPECT_EQ(t, absl::Milliseconds(200));
  EXPECT_EQ(nothing, 4);
}

template <typename T>
std::string Complaint(const Value& value) {
  const Value parameters = Parameters({{"f", value}});
  ParameterReader read("plug", parameters);
  T out{};
  read.Optional("f", &out);
  return std::string(read.Finish().message());
}

TEST(ParameterReader, NamesFieldValueAndExpectation) {
  EXPECT_EQ(Complaint<bool>(1), "plug: f is an integer, expected a boolean");
  EXPECT_EQ(Complaint<std::int64_t>(1.5), "plug: f is a number, expected an integer");
  EXPECT_EQ(Complaint<double>("x"), "plug: f is a string, expected a number");
  EXPECT_EQ(Complaint<std::string>(true), "plug: f is a boolean, expected a string");
  EXPECT_EQ(Complaint<std::vector<std::string>>(Value::MakeList({1})),
            "plug: f is an integer, expected a list of strings");
  EXPECT_THAT(Complaint<double>(std::numeric_limits<double>::quiet_NaN()),
              HasSubstr("expected a finite number"));
  EXPECT_THAT(Complaint<absl::Duration>("soon"), HasSubstr("\"soon\", expected a duration"));
}

TEST(ParameterReader, RefusesWhatItDoesNotKnow) {
  const Value unknown = Parameters({{"tresholds", 1}});
  EXPECT_EQ(ParameterReader("plug", unknown).Finish().message(),
            "plug: tresholds is unknown, expected no parameters");
  const Value list = Value::MakeList({});
  EXPECT_EQ(ParameterReader("plug", list).Finish().message(), "plug: parameters is a list, expected a map");
  const Value twice = Parameters({{"a", 1}, {"a", 2}});
  ParameterReader read("plug", twice);
  std::int64_t a = 0;
  read.Optional("a", &a);
  EXPECT_EQ(read.Finish().message(), "plug: a is given twice, expected one value");
  const Value null;
  EXPECT_TRUE(ParameterReader("plug", null).Finish().ok());
}

TEST(ParameterReader, DottedFieldsHaveTheLineOfTheInnermost) {
  Value prefill("x");
  prefill.set_line(3);
  Value deciders = Parameters({{"prefill", prefill}});
  deciders.set_line(2);
  Value all = Parameters({{"deciders", deciders}});
  all.set_line(1);
  const auto complaint = [&all](std::string_view field) {
    ParameterReader read = ParameterReader::At("p", all);
    read.Reject(field, "x", "y");
    return std::string(read.Complaint().message());
  };
  EXPECT_EQ(complaint("deciders.prefill"), "line 3: p.deciders.prefill is x, expected y");
  EXPECT_EQ(complaint("deciders.encode"), "line 2: p.deciders.encode is x, expected y");
  EXPECT_EQ(complaint("profiles.encode"), "line 1: p.profiles.encode is x, expected y");
}

}  // namespace
}  // namespace llmd::sched
