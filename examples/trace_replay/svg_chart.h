// Charts as inline SVG. Colours come from the page's CSS: series i is drawn with the class "s<i>" (modulo the
// number of styles), the reference line with "ref". Every chart carries a title and a description for screen
// readers, and every mark a tooltip.
#ifndef LLMD_EXAMPLES_TRACE_REPLAY_SVG_CHART_H_
#define LLMD_EXAMPLES_TRACE_REPLAY_SVG_CHART_H_

#include <string>
#include <string_view>
#include <vector>

namespace llmd::replay {

// & < > " made safe for text and attributes.
std::string EscapeHtml(std::string_view text);

struct ChartText {
  std::string id;           // unique on the page, [a-z-]
  std::string title;        // what is shown
  std::string description;  // what there is to see, for those who do not
};

struct Series {
  std::string name;
  std::string css_class;
  std::vector<double> x;
  std::vector<double> y;
};

struct LineChart {
  ChartText text;
  std::string x_label = {};
  std::string y_label = {};
  bool log_x = false;       // then x > 0
  double y_max = 1;         // the axis begins at 0; a fraction, printed as percent
  bool label_ends = false;  // names at the right ends of lines, besides the legend
  std::vector<Series> series = {};

  std::string ToSvg() const;
};

// Rows of bars, each bar a solid part with a pale one on top, and a line at the mean of the sums: the same
// scale for all rows.
struct BarRows {
  struct Row {
    std::string name;
    std::string css_class;
    std::string note;  // right of the bars
    std::vector<double> solid;
    std::vector<double> pale;  // as many
  };
  ChartText text;
  std::string solid_unit;  // for tooltips
  std::string pale_unit;
  std::string bar_name;  // "endpoint": bars are numbered from 0
  std::vector<Row> rows;

  std::string ToSvg() const;
};

}  // namespace llmd::replay

#endif  // LLMD_EXAMPLES_TRACE_REPLAY_SVG_CHART_H_
