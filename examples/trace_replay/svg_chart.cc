#include "examples/trace_replay/svg_chart.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace llmd::replay {
namespace {

constexpr double kWidth = 960;

// "1", "0.25", "12.5": short, without trailing zeros.
std::string Short(double value) { return absl::StrFormat("%.4g", value); }

// A step of 1, 2 or 5 times a power of ten that cuts `range` into at most `most` parts.
double NiceStep(double range, int most) {
  const double raw = range / most;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw) return factor * power;
  }
  return 10 * power;
}

std::string Open(const ChartText& text, double height) {
  return absl::StrFormat(
      "<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-labelledby=\"%s-title %s-desc\">\n"
      "<title id=\"%s-title\">%s</title><desc id=\"%s-desc\">%s</desc>\n",
      kWidth, height, text.id, text.id, text.id, EscapeHtml(text.title), text.id,
      EscapeHtml(text.description));
}

void Text(double x, double y, const char* anchor, const std::string& text, std::string& out,
          const char* extra = "") {
  absl::StrAppendFormat(&out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\"%s>%s</text>\n", x, y, anchor,
                        extra, EscapeHtml(text));
}

// Maps values to the plot area of a LineChart and draws its axes.
class Plot {
 public:
  static constexpr double kLeft = 58, kTop = 14, kBottom = 46, kHeight = 360;

  explicit Plot(const LineChart& chart) : chart_(chart), right_(chart.label_ends ? 118 : 20) {
    low_ = std::numeric_limits<double>::infinity();
    high_ = -low_;
    for (const Series& series : chart.series) {
      for (const double x : series.x) {
        low_ = std::min(low_, x);
        high_ = std::max(high_, x);
      }
    }
    if (!(low_ <= high_)) low_ = high_ = 1;
    if (!chart.log_x) low_ = 0;
    if (high_ <= low_) high_ = low_ * 2 + 1;
  }

  double X(double x) const {
    const double share =
        chart_.log_x ? std::log(x / low_) / std::log(high_ / low_) : (x - low_) / (high_ - low_);
    return kLeft + share * (kWidth - kLeft - right_);
  }
  double Y(double y) const { return kHeight - kBottom - y / chart_.y_max * (kHeight - kTop - kBottom); }
  double right() const { return kWidth - right_; }

  void Axes(std::string& out) const {
    const double y_step = NiceStep(chart_.y_max, 6);
    for (int i = 0; i * y_step <= chart_.y_max * 1.0001; ++i) {
      const double y = Y(i * y_step);
      Line(kLeft, y, right(), y, out);
      Text(kLeft - 8, y + 4, "end", absl::StrCat(Short(100 * i * y_step), " %"), out);
    }
    for (const double tick : XTicks()) {
      Line(X(tick), kTop, X(tick), kHeight - kBottom, out);
      Text(X(tick), kHeight - kBottom + 18, "middle", Short(tick), out);
    }
    Text((kLeft + right()) / 2, kHeight - 8, "middle", chart_.x_label, out, " class=\"axis\"");
    absl::StrAppendFormat(&out,
                          "<text transform=\"translate(13 %.1f) rotate(-90)\" text-anchor=\"middle\" "
                          "class=\"axis\">%s</text>\n",
                          (kHeight - kBottom + kTop) / 2, EscapeHtml(chart_.y_label));
  }

 private:
  static void Line(double x1, double y1, double x2, double y2, std::string& out) {
    absl::StrAppendFormat(&out, "<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n",
                          x1, y1, x2, y2);
  }

  std::vector<double> XTicks() const {
    std::vector<double> ticks;
    if (!chart_.log_x) {
      const double step = NiceStep(high_ - low_, 8);
      for (int i = 0; low_ + i * step <= high_; ++i) ticks.push_back(low_ + i * step);
      return ticks;
    }
    for (double power = std::pow(10, std::floor(std::log10(low_))); power <= high_; power *= 10) {
      for (const double factor : {1.0, 2.0, 5.0}) {
        if (factor * power >= low_ && factor * power <= high_) ticks.push_back(factor * power);
      }
    }
    return ticks;
  }

  const LineChart& chart_;
  double right_;
  double low_;
  double high_;
};

// Names at the lines' ends, moved apart where they would cover each other.
void LabelEnds(const LineChart& chart, const Plot& plot, std::string& out) {
  constexpr double kGap = 15;
  std::vector<std::pair<double, const Series*>> labels;
  for (const Series& series : chart.series) {
    if (!series.y.empty()) labels.emplace_back(plot.Y(series.y.back()), &series);
  }
  std::stable_sort(labels.begin(), labels.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (std::size_t i = 1; i < labels.size(); ++i) {
    labels[i].first = std::max(labels[i].first, labels[i - 1].first + kGap);
  }
  double floor = Plot::kHeight - Plot::kBottom + 4;
  for (std::size_t i = labels.size(); i-- > 0;) {
    labels[i].first = std::min(labels[i].first, floor);
    floor = labels[i].first - kGap;
  }
  for (const auto& [y, series] : labels) {
    const std::string extra = absl::StrCat(" class=\"end ", series->css_class, "\"");
    Text(plot.right() + 8, y + 4, "start", series->name, out, extra.c_str());
  }
}

}  // namespace

std::string EscapeHtml(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string LineChart::ToSvg() const {
  const Plot plot(*this);
  std::string out = Open(text, Plot::kHeight);
  plot.Axes(out);
  for (const Series& s : series) {
    absl::StrAppendFormat(&out, "<polyline class=\"line %s\" points=\"", s.css_class);
    for (std::size_t i = 0; i < s.x.size(); ++i)
      absl::StrAppendFormat(&out, "%.1f,%.1f ", plot.X(s.x[i]), plot.Y(s.y[i]));
    out += "\"/>\n";
  }
  for (const Series& s : series) {
    absl::StrAppendFormat(&out, "<g class=\"hover %s\">", s.css_class);
    for (std::size_t i = 0; i < s.x.size(); ++i) {
      absl::StrAppendFormat(
          &out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\"><title>%s: %s, %.1f %%</title></circle>",
          plot.X(s.x[i]), plot.Y(s.y[i]), EscapeHtml(s.name), absl::StrFormat("%.3g", s.x[i]), 100 * s.y[i]);
    }
    out += "</g>\n";
  }
  if (label_ends) LabelEnds(*this, plot, out);
  return out + "</svg>\n";
}

std::string BarRows::ToSvg() const {
  constexpr double kLeft = 118, kNote = 206, kRow = 66, kBarHeight = 48, kMaxBar = 40, kBottom = 26;
  const double height = kRow * static_cast<double>(rows.size()) + kBottom;
  double max = 0;
  std::size_t bars = 1;
  for (const Row& row : rows) {
    bars = std::max(bars, row.solid.size());
    for (std::size_t i = 0; i < row.solid.size(); ++i) max = std::max(max, row.solid[i] + row.pale[i]);
  }
  if (max <= 0) max = 1;
  const double slot = (kWidth - kLeft - kNote) / static_cast<double>(bars);
  const double width = std::min(kMaxBar, slot * 0.7);
  const auto center = [&](std::size_t i) { return kLeft + slot * (static_cast<double>(i) + 0.5); };
  std::string out = Open(text, height);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const Row& row = rows[r];
    const double base = kRow * static_cast<double>(r) + kBarHeight + 12;
    Text(kLeft - 12, base - 2, "end", row.name, out, " class=\"name\"");
    double sum = 0;
    for (std::size_t i = 0; i < row.solid.size(); ++i) {
      const double solid = row.solid[i] / max * kBarHeight;
      const double pale = row.pale[i] / max * kBarHeight;
      sum += row.solid[i] + row.pale[i];
      absl::StrAppendFormat(&out, "<g class=\"%s\"><title>%s, %s %d: %s %s, %s %s</title>", row.css_class,
                            EscapeHtml(row.name), EscapeHtml(bar_name), i,
                            absl::StrFormat("%.4g", row.solid[i]), EscapeHtml(solid_unit),
                            absl::StrFormat("%.4g", row.pale[i]), EscapeHtml(pale_unit));
      const auto rect = [&](const char* css, double top, double size) {
        absl::StrAppendFormat(&out,
                              "<rect class=\"%s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>",
                              css, center(i) - width / 2, top, width, size);
      };
      rect("bar", base - solid, solid);
      rect("bar pale", base - solid - pale, pale);
      out += "</g>\n";
    }
    const double mean =
        base - sum / static_cast<double>(std::max<std::size_t>(1, row.solid.size())) / max * kBarHeight;
    for (const auto& [css, y] : {std::pair("base", base), std::pair("mean", mean)}) {
      absl::StrAppendFormat(&out, "<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n",
                            css, kLeft, y, kWidth - kNote, y);
    }
    Text(kWidth - kNote + 12, base - 2, "start", row.note, out);
  }
  for (std::size_t i = 0; i < bars && bars <= 32; ++i) {
    Text(center(i), height - 8, "middle", absl::StrCat(i), out);
  }
  Text(kLeft - 12, height - 8, "end", bar_name, out, " class=\"axis\"");
  return out + "</svg>\n";
}

}  // namespace llmd::replay
