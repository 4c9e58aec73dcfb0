//! Draws panels of lines as an SVG image that reads as well on white as on black: no background, middle tones.

use std::fmt::Write;

use super::axis::Axis;

/// Text, axes and grid: middle greys.
const INK: &str = "#76808a";
/// One hue for each model, told apart by people who see few colours too.
const COLOURS: [&str; 6] = ["#3b82d6", "#d9822b", "#1f9e78", "#c2609c", "#8a6fd1", "#c94f4f"];

const PANEL_WIDTH: f64 = 450.0;
const PLOT_HEIGHT: f64 = 300.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 62.0;
const BELOW_AXIS: f64 = 50.0;
const LEGEND_LINE: f64 = 18.0;
const BOTTOM: f64 = 8.0;

/// One line of a panel.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    /// For the legend.
    pub(super) name: String,
    /// Chooses the colour.
    pub(super) model: usize,
    /// Chooses the marker, of lines of one colour.
    pub(super) variant: usize,
    /// What was measured, left to right.
    pub(super) points: Vec<(f64, f64)>,
    /// What would be possible, left to right; may be empty.
    pub(super) limit: Vec<(f64, f64)>,
}

/// Lines over shared axes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Panel {
    pub(super) x_label: &'static str,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
}

impl Series {
    fn colour(&self) -> &'static str {
        COLOURS.get(self.model % COLOURS.len()).copied().unwrap_or(INK)
    }

    /// A marker around a point, with what it stands for.
    fn marker(&self, (x, y): (f64, f64), says: &str) -> String {
        let shape = match self.variant % 3 {
            0 => format!("M{:.1} {y:.1}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0", x - 4.0),
            1 => format!("M{:.1} {:.1}h7v7h-7z", x - 3.5, y - 3.5),
            _ => format!("M{x:.1} {:.1}l5 5l-5 5l-5 -5z", y - 5.0),
        };
        let class = if says.is_empty() { "key" } else { "marker" };
        let colour = self.colour();
        format!(
            "<path class=\"{class}\" d=\"{shape}\" fill=\"{colour}\"><title>{}</title></path>\n",
            escaped(says)
        )
    }
}

/// The whole image.
pub(super) fn draw(caption: &str, panels: &[Panel]) -> String {
    let width = PANEL_WIDTH * panels.len() as f64;
    let legend = panels.iter().map(|panel| panel.series.len() + 1).max().unwrap_or(0) as f64 * LEGEND_LINE;
    let height = TOP + PLOT_HEIGHT + BELOW_AXIS + legend + BOTTOM;
    let body: String = panels.iter().enumerate().map(|(index, panel)| panel.draw(index)).collect();
    let caption = escaped(caption);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" role=\"img\" font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"{INK}\">\n\
         <title>{caption}</title>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"14\">{caption}</text>\n{body}</svg>\n"
    )
}

impl Panel {
    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let across = PANEL_WIDTH - LEFT - RIGHT;
        (LEFT + self.x.share(x) * across, TOP + (1.0 - self.y.share(y)) * PLOT_HEIGHT)
    }

    fn draw(&self, index: usize) -> String {
        let mut svg = format!("<g transform=\"translate({} 0)\">\n", PANEL_WIDTH * index as f64);
        svg += &self.grid();
        for series in &self.series {
            svg += &self.line("limit", &series.limit, series.colour(), " stroke-dasharray=\"3 4\"");
            svg += &self.line("measured", &series.points, series.colour(), " stroke-width=\"2\"");
            for &(x, y) in &series.points {
                let says = format!("{}: {} at {}", series.name, number(y), number(x));
                svg += &series.marker(self.place((x, y)), &says);
            }
        }
        svg += &self.legend();
        svg + "</g>\n"
    }

    fn line(&self, class: &str, points: &[(f64, f64)], colour: &str, style: &str) -> String {
        if points.len() < 2 {
            return String::new();
        }
        let places = points.iter().map(|point| {
            let (x, y) = self.place(*point);
            format!("{x:.1},{y:.1}")
        });
        let places = places.collect::<Vec<_>>().join(" ");
        format!(
            "<polyline class=\"{class}\" points=\"{places}\" fill=\"none\" stroke=\"{colour}\"{style}/>\n"
        )
    }

    fn grid(&self) -> String {
        let (right, bottom) = (PANEL_WIDTH - RIGHT, TOP + PLOT_HEIGHT);
        let mut svg = String::new();
        // Writing to a string cannot fail.
        for &tick in self.y.ticks() {
            let y = TOP + (1.0 - self.y.share(tick)) * PLOT_HEIGHT;
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"{INK}\" stroke-opacity=\"0.3\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 7.0,
                y + 4.0,
                number(tick)
            );
        }
        for &tick in self.x.ticks() {
            let x = LEFT + self.x.share(tick) * (right - LEFT);
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.1} {bottom}v5\" stroke=\"{INK}\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 19.0,
                number(tick)
            );
        }
        let middle = f64::midpoint(LEFT, right);
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {bottom}H{right}\" stroke=\"{INK}\"/>\
             <text x=\"{LEFT}\" y=\"{:.1}\" text-anchor=\"end\">tokens/s</text>\
             <text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            TOP - 14.0,
            bottom + 38.0,
            escaped(self.x_label)
        );
        svg
    }

    fn legend(&self) -> String {
        let mut svg = String::new();
        let top = TOP + PLOT_HEIGHT + BELOW_AXIS + 8.0;
        for (index, series) in self.series.iter().enumerate() {
            let y = top + index as f64 * LEGEND_LINE;
            svg += &series.marker((LEFT + 6.0, y), "");
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{:.1}\" fill=\"{}\">{}</text>",
                LEFT + 18.0,
                y + 4.0,
                series.colour(),
                escaped(&series.name)
            );
        }
        if self.series.iter().any(|series| series.limit.len() > 1) {
            let y = top + self.series.len() as f64 * LEGEND_LINE;
            let _ = writeln!(
                svg,
                "<path d=\"M{} {y:.1}h14\" stroke=\"{INK}\" stroke-dasharray=\"3 4\"/>\
                 <text x=\"{}\" y=\"{:.1}\">what the memory's bandwidth would allow</text>",
                LEFT - 1.0,
                LEFT + 18.0,
                y + 4.0
            );
        }
        svg
    }
}

/// With commas between thousands, as people read it.
fn number(value: f64) -> String {
    if value < 10.0 && value.fract() != 0.0 {
        return format!("{value:.2}").trim_end_matches('0').to_owned();
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What text may not hold in a document.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_text_is_escaped() {
        assert_eq!([1.0, 626.0, 19_702.0, 1e6].map(number), ["1", "626", "19,702", "1,000,000"]);
        assert_eq!([0.0, 0.2, 0.05, 7.256].map(number), ["0", "0.2", "0.05", "7.26"]);
        assert_eq!(escaped("a<b> & \"c\""), "a&lt;b&gt; &amp; &quot;c&quot;");
    }
}
