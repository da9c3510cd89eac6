#include "llmd/gateway/prometheus_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llmd::gateway {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// "name{label=value}=number@timestamp" of the samples that parse.
std::vector<std::string> Samples(PrometheusReader& reader, std::string_view page) {
  std::vector<std::string> samples;
  EXPECT_TRUE(reader.Start(page).ok());
  while (reader.Next()) {
    if (!reader.Parse()) continue;
    std::string text(reader.name());
    for (const PrometheusLabel& label : reader.labels()) {
      text +=
          (text.find('{') == std::string::npos ? "{" : ",") + std::string(label.name) + "=" + label.Value();
    }
    if (!reader.labels().empty()) text += "}";
    char number[64];
    std::snprintf(number, sizeof number, "=%g", reader.value());
    text += number;
    if (reader.timestamp()) {
      std::snprintf(number, sizeof number, "@%.15g", *reader.timestamp());
      text += number;
    }
    samples.push_back(text);
  }
  return samples;
}

std::vector<std::string> Samples(std::string_view page) {
  PrometheusReader reader;
  return Samples(reader, page);
}

TEST(Prometheus, APage) {
  PrometheusReader reader;
  EXPECT_THAT(Samples(reader,
                      "# HELP a The \"a\"\n"
                      "# TYPE a gauge\n"
                      "a 1\n"
                      "a{x=\"1\",y=\"two\"} 2.5e3\n"
                      "\n"
                      "# just a comment\n"
                      "b:c_total{} -0 1395066363000\n"
                      "  \t d \t { x = \"1\" , } \t 3 \t \n"),
              ElementsAre("a=1", "a{x=1,y=two}=2500", "b:c_total=-0@1395066363000", "d{x=1}=3"));
  EXPECT_EQ(reader.stats().lines, 8u);
  EXPECT_EQ(reader.stats().samples, 4u);
  EXPECT_EQ(reader.stats().malformed, 0u);
  EXPECT_THAT(Samples(""), IsEmpty());
  EXPECT_THAT(Samples("\n\n"), IsEmpty());
}

TEST(Prometheus, Numbers) {
  const auto value = [](const std::string& text) {
    PrometheusReader reader;
    const std::string page = "a " + text + "\n";
    EXPECT_TRUE(reader.Start(page).ok());
    EXPECT_TRUE(reader.Next());
    return reader.Parse() ? reader.value() : -77;
  };
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(value("+Inf"), infinity);
  EXPECT_EQ(value("-Inf"), -infinity);
  EXPECT_EQ(value("Inf"), infinity);
  EXPECT_EQ(value("inf"), infinity);
  EXPECT_TRUE(std::isnan(value("NaN")));
  EXPECT_TRUE(std::isnan(value("nan")));
  EXPECT_EQ(value("+1"), 1);
  EXPECT_EQ(value("1e-05"), 1e-05);
  EXPECT_EQ(value("1.7859669528940387e+09"), 1.7859669528940387e+09);
  EXPECT_EQ(value(".5"), 0.5);
  EXPECT_EQ(value("5."), 5);
  for (const char* bad :
       {"", "+", "-", "+-1", "++1", "1x", "0x10", "1,5", "1e999", "e5", "nan(1)", "NaN()", "--1", "1_0"}) {
    EXPECT_EQ(value(bad), -77) << bad;
  }
}

TEST(Prometheus, Escapes) {
  EXPECT_THAT(Samples("a{x=\"q\\\"b\\\\n\\n}\"} 1\n"), ElementsAre("a{x=q\"b\\n\n}}=1"));
  PrometheusReader reader;
  ASSERT_TRUE(reader.Start("a{x=\"\\\\\\\"\\n\",y=\"\"} 1\n").ok());
  ASSERT_TRUE(reader.Next());
  ASSERT_TRUE(reader.Parse());
  const PrometheusLabel* x = reader.FindLabel("x");
  ASSERT_NE(x, nullptr);
  EXPECT_TRUE(x->escaped());
  EXPECT_TRUE(x->Is("\\\"\n"));
  EXPECT_FALSE(x->Is("\\\""));
  EXPECT_FALSE(x->Is("\\\"\nz"));
  EXPECT_FALSE(x->Is(x->raw));
  EXPECT_TRUE(reader.FindLabel("y")->Is(""));
  EXPECT_EQ(reader.FindLabel("z"), nullptr);
}

TEST(Prometheus, ExemplarsAreIgnored) {
  EXPECT_THAT(Samples("a_bucket{le=\"1\"} 5 # {trace_id=\"x\"} 0.5 1.5\n"
                      "a_total 5 1.25 # {trace_id=\"x\"} 0.5\n"
                      "a_total 5 1.25 # anything\n"),
              ElementsAre("a_bucket{le=1}=5", "a_total=5@1.25", "a_total=5@1.25"));
}

TEST(Prometheus, EndOfOpenMetrics) {
  EXPECT_THAT(Samples("a 1\n# EOF\nb 2\n"), ElementsAre("a=1"));
  PrometheusReader reader;
  EXPECT_THAT(Samples(reader, "a 1\n# EOF"), ElementsAre("a=1"));
  EXPECT_EQ(reader.stats().malformed, 0u);
}

TEST(Prometheus, ACutOffLineIsMalformed) {
  PrometheusReader reader;
  EXPECT_THAT(Samples(reader, "a 1\nb 12"), ElementsAre("a=1"));
  EXPECT_EQ(reader.stats().malformed, 1u);
  EXPECT_EQ(reader.stats().first_malformed_line, 2u);
}

TEST(Prometheus, CarriageReturnsBeforeTheLineFeed) {
  EXPECT_THAT(Samples("a 1\r\nb{x=\"1\"} 2\r\n"), ElementsAre("a=1", "b{x=1}=2"));
}

TEST(Prometheus, MalformedLinesAreCountedAndPassedOver) {
  const std::vector<std::string> bad = {"1a 1",
                                        "a",
                                        "a{",
                                        "a{x",
                                        "a{x=",
                                        "a{x=1} 1",
                                        "a{x=\"1} 1",
                                        "a{x=\"1\"",
                                        "a{x=\"1\"}",
                                        "a{x=\"1\"}x",
                                        "a{=\"1\"} 1",
                                        "a{1=\"1\"} 1",
                                        "a{,} 1",
                                        "a{x=\"1\",,} 1",
                                        "a 1 2 3",
                                        "a 1 x",
                                        "a 1 2 x",
                                        "a-b 1",
                                        "<html>",
                                        "{\"a\"} 1",
                                        "{} 1",
                                        "a{x=\"\\t\"} 1",
                                        "a{x=\"\\",
                                        "a{x:y=\"1\"} 1",
                                        "a}",
                                        "\xff 1",
                                        "a{x=\"1\"y=\"2\"} 1",
                                        "a=1"};
  for (const std::string& line : bad) {
    PrometheusReader reader;
    EXPECT_THAT(Samples(reader, "first 1\n" + line + "\nlast 2\n"), ElementsAre("first=1", "last=2")) << line;
    EXPECT_EQ(reader.stats().malformed, 1u) << line;
    EXPECT_EQ(reader.stats().first_malformed_line, 2u) << line;
    EXPECT_TRUE(reader.status().ok());
  }
}

TEST(Prometheus, WhatIsNotAskedForIsNotChecked) {
  PrometheusReader reader;
  ASSERT_TRUE(reader.Start("a{\n").ok());
  EXPECT_TRUE(reader.Next());
  EXPECT_FALSE(reader.Next());
  EXPECT_EQ(reader.stats().malformed, 0u);
}

TEST(Prometheus, Types) {
  PrometheusReader reader;
  ASSERT_TRUE(reader
                  .Start("z 1\n"
                         "# TYPE a gauge\na 1\na_total 1\nab 1\n"
                         "#TYPE b counter\nb 1\nb_total 1\nb_created 1\n"
                         "#  TYPE  c \t histogram \nc_bucket 1\nc_sum 1\ncc 1\n"
                         "# TYPE d summary\nd 1\n"
                         "# TYPE e untyped\ne 1\n"
                         "# TYPE f info\nf_info 1\n"
                         "# TYPED g gauge\ng 1\n")
                  .ok());
  std::vector<std::pair<std::string, PrometheusType>> types;
  while (reader.Next()) types.emplace_back(reader.name(), reader.type());
  using T = PrometheusType;
  using Pair = std::pair<std::string, T>;
  EXPECT_THAT(types,
              ElementsAre(Pair("z", T::kUnknown), Pair("a", T::kGauge), Pair("a_total", T::kUnknown),
                          Pair("ab", T::kUnknown), Pair("b", T::kCounter), Pair("b_total", T::kCounter),
                          Pair("b_created", T::kUnknown), Pair("c_bucket", T::kHistogram),
                          Pair("c_sum", T::kHistogram), Pair("cc", T::kUnknown), Pair("d", T::kSummary),
                          Pair("e", T::kUnknown), Pair("f_info", T::kOther), Pair("g", T::kUnknown)));
}

TEST(Prometheus, ALabelGivenTwice) {
  PrometheusReader reader;
  ASSERT_TRUE(reader.Start("a{x=\"1\",x=\"2\"} 1\n").ok());
  ASSERT_TRUE(reader.Next() && reader.Parse());
  EXPECT_EQ(reader.labels().size(), 2u);
  EXPECT_EQ(reader.FindLabel("x")->raw, "1");
}

TEST(Prometheus, LabelsCanBeReadAgain) {
  const std::string page = "a{x=\"1\",y=\"}\"} 1\nb 2\n";
  PrometheusReader reader;
  ASSERT_TRUE(reader.Start(page).ok());
  ASSERT_TRUE(reader.Next() && reader.Parse());
  const std::string_view labels = reader.labels_text();
  ASSERT_TRUE(reader.Next() && reader.Parse());
  EXPECT_TRUE(reader.labels().empty());
  EXPECT_TRUE(reader.labels_text().empty());
  reader.ParseLabels(labels);
  EXPECT_EQ(reader.labels().size(), 2u);
  EXPECT_EQ(reader.FindLabel("y")->raw, "}");
  reader.ParseLabels("");
  EXPECT_TRUE(reader.labels().empty());
}

TEST(Prometheus, RefusesAPageByItsSize) {
  PrometheusReader reader({.max_bytes = 8});
  EXPECT_TRUE(reader.Start("a 1\nb 2\n").ok());
  // The memory behind a page that is too large is not looked at.
  const std::string_view huge("a 1\n", std::size_t{1} << 30);
  const absl::Status status = reader.Start(huge);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("1073741824 bytes, expected at most 8"));
  EXPECT_FALSE(reader.Next());
  EXPECT_EQ(reader.status(), status);
  EXPECT_TRUE(reader.Start("a 1\n").ok());
  EXPECT_TRUE(reader.Next());
  EXPECT_EQ(PrometheusReader().Start(huge).code(), absl::StatusCode::kResourceExhausted);
}

TEST(Prometheus, RefusesTooManyLines) {
  PrometheusReader reader({.max_lines = 2});
  ASSERT_TRUE(reader.Start("a 1\n#\nb 2\n").ok());
  EXPECT_TRUE(reader.Next());
  EXPECT_FALSE(reader.Next());
  EXPECT_THAT(std::string(reader.status().message()), HasSubstr("more than 2 lines"));
  ASSERT_TRUE(reader.Start("a 1\nb 2\n").ok());
  while (reader.Next()) {
  }
  EXPECT_TRUE(reader.status().ok());
}

TEST(Prometheus, RefusesWhatIsNoPageOfMetrics) {
  PrometheusReader reader({.max_malformed = 3});
  ASSERT_TRUE(reader.Start("<html>\n<head>\n<title>\na 1\n</title>\nb 1\n").ok());
  EXPECT_TRUE(reader.Next());
  EXPECT_FALSE(reader.Next());
  EXPECT_THAT(std::string(reader.status().message()),
              HasSubstr("more than 3 malformed lines, the first at line 1"));
}

TEST(Prometheus, LongLinesAndManyLabelsAreMalformed) {
  PrometheusReader reader({.max_line_bytes = 10, .max_labels = 1});
  EXPECT_THAT(Samples(reader, "a       1\nb        1\nc         1\n"), ElementsAre("a=1", "b=1"));
  EXPECT_EQ(reader.stats().malformed, 1u);
  PrometheusReader labels({.max_labels = 1});
  EXPECT_THAT(Samples(labels, "a{x=\"1\"} 1\na{x=\"1\",y=\"2\"} 1\n"), ElementsAre("a{x=1}=1"));
  EXPECT_EQ(labels.stats().malformed, 1u);
}

}  // namespace
}  // namespace llmd::gateway
