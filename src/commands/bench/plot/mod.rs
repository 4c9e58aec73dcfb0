//! `bench plot`: tokens per second against the batch and against the context, from what `bench batch` printed.

mod axis;
mod svg;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use crate::commands::CommandError;
use axis::Axis;
use svg::{Panel, Series};

/// Flags of `bench plot`.
#[derive(Args, Debug)]
pub(super) struct PlotArgs {
    /// Files with the JSON of `bench batch`, one of each model
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// File to write the SVG to; standard output when omitted
    #[arg(short, long, env = "WORKER_ORCD_OUTPUT", value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What a file of figures holds, as far as it is drawn.
#[derive(Debug, Deserialize)]
struct Figures {
    #[serde(default)]
    device: String,
    model: String,
    results: Vec<Measured>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Measured {
    batch: u32,
    depth: u32,
    tokens_per_second: f64,
    limit_tokens_per_second: Option<f64>,
}

/// Runs the command.
///
/// # Errors
/// A file that cannot be read or is none of figures, or one that cannot be written.
pub(super) fn run(args: &PlotArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    let figures = args.files.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
    let panels: Vec<Panel> = [by_batch(&figures), by_depth(&figures)].into_iter().flatten().collect();
    if panels.is_empty() {
        let reason =
            "nothing to draw: no model was measured at two batches of one depth, or two depths of one batch";
        return Err(CommandError::Usage(reason.into()));
    }
    let drawn = svg::draw(&caption(&figures), &panels);
    let Some(path) = &args.output else { return Ok(write!(out, "{drawn}")?) };
    std::fs::write(path, drawn)?;
    let lines: usize = panels.iter().map(|panel| panel.series.len()).sum();
    writeln!(out, "{}", json!({ "bench": "plot", "file": path, "panels": panels.len(), "lines": lines }))?;
    Ok(())
}

fn read(path: &Path) -> Result<Figures, CommandError> {
    let refused = |reason: String| CommandError::Usage(format!("{}: {reason}", path.display()));
    let text = std::fs::read(path).map_err(|error| refused(error.to_string()))?;
    let figures: Figures = serde_json::from_slice(&text)
        .map_err(|error| refused(format!("no figures of `bench batch`: {error}")))?;
    let positive = |rate: f64| rate.is_finite() && rate > 0.0;
    let drawable = |measured: &Measured| {
        measured.batch > 0
            && positive(measured.tokens_per_second)
            && measured.limit_tokens_per_second.is_none_or(positive)
    };
    match figures.results.iter().find(|measured| !drawable(measured)) {
        Some(measured) => Err(refused(format!("{measured:?} cannot be drawn"))),
        None => Ok(figures),
    }
}

/// The devices that were measured.
fn caption(figures: &[Figures]) -> String {
    let mut devices: Vec<&str> = figures.iter().map(|figures| figures.device.as_str()).collect();
    devices.sort_unstable();
    devices.dedup();
    devices.retain(|device| !device.is_empty());
    let colon = if devices.is_empty() { "" } else { ": " };
    format!("Decode, tokens per second of all sequences{colon}{}", devices.join(", "))
}

/// The model's name: a path's last part without the format's ending.
fn name(figures: &Figures) -> &str {
    let file = figures.model.rsplit(['/', '\\']).next().unwrap_or(&figures.model);
    file.strip_suffix(".gguf").unwrap_or(file)
}

/// The values of `key`, ascending, each once.
fn distinct(results: &[Measured], key: fn(&Measured) -> u32) -> Vec<u32> {
    let mut values: Vec<u32> = results.iter().map(key).collect();
    values.sort_unstable();
    values.dedup();
    values
}

/// A line for each value of `fixed` at which a model was measured at two values of `moving` or more.
fn lines(
    figures: &[Figures],
    fixed: fn(&Measured) -> u32,
    moving: fn(&Measured) -> u32,
    says: fn(u32) -> String,
) -> Vec<Series> {
    let mut lines = vec![];
    for (model, figures) in figures.iter().enumerate() {
        for (variant, value) in distinct(&figures.results, fixed).into_iter().enumerate() {
            let mut points: Vec<Measured> =
                figures.results.iter().copied().filter(|measured| fixed(measured) == value).collect();
            points.sort_by_key(moving);
            if distinct(&points, moving).len() < 2 {
                continue;
            }
            let at = |measured: &Measured, rate: f64| (f64::from(moving(measured)), rate);
            lines.push(Series {
                name: format!("{}, {}", name(figures), says(value)),
                model,
                variant,
                points: points.iter().map(|point| at(point, point.tokens_per_second)).collect(),
                limit: points
                    .iter()
                    .filter_map(|point| point.limit_tokens_per_second.map(|limit| at(point, limit)))
                    .collect(),
            });
        }
    }
    lines
}

fn by_batch(figures: &[Figures]) -> Option<Panel> {
    let series = lines(
        figures,
        |measured| measured.depth,
        |measured| measured.batch,
        |depth| format!("{depth} tokens deep"),
    );
    panel("sequences at once", series, Axis::powers_of_two)
}

fn by_depth(figures: &[Figures]) -> Option<Panel> {
    let series = lines(
        figures,
        |measured| measured.batch,
        |measured| measured.depth,
        |batch| if batch == 1 { "1 sequence".to_owned() } else { format!("{batch} sequences") },
    );
    panel("tokens of each sequence in the cache", series, Axis::from_zero)
}

fn panel(x_label: &'static str, series: Vec<Series>, axis: fn(f64, f64) -> Axis) -> Option<Panel> {
    let all = || series.iter().flat_map(|line| line.points.iter().chain(&line.limit));
    let range = |of: fn(&(f64, f64)) -> f64| {
        all().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let ((left, right), (low, high)) = (range(|point| point.0), range(|point| point.1));
    (!series.is_empty()).then(|| Panel { x_label, x: axis(left, right), y: Axis::decades(low, high), series })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIGURES: &str = r#"{ "bench": "batch", "device": "A & B", "model": "/models/one-0.5b.gguf", "results": [
        { "batch": 1, "depth": 64, "tokens_per_second": 100, "limit_tokens_per_second": 200 },
        { "batch": 4, "depth": 64, "tokens_per_second": 400, "limit_tokens_per_second": 800 },
        { "batch": 2, "depth": 64, "tokens_per_second": 200, "limit_tokens_per_second": 400 },
        { "batch": 1, "depth": 1000, "tokens_per_second": 50 } ] }"#;

    fn plotted(text: &str) -> Result<String, CommandError> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("figures.json");
        std::fs::write(&path, text)?;
        let mut out = vec![];
        run(&PlotArgs { files: vec![path], output: None }, &mut out)?;
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    /// An element's name with its attributes.
    type Element = (String, Vec<(String, String)>);

    /// Every element of a document whose tags are balanced.
    fn elements(xml: &str) -> Vec<Element> {
        let (mut found, mut open) = (vec![], vec![]);
        for tag in xml.split('<').skip(1) {
            let (tag, text) = tag.split_once('>').expect("a tag ends");
            assert!(!text.contains('&') || text.contains("&amp;"), "{text}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name), "closes what is open");
                continue;
            }
            let (tag, closed) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
            let (name, rest) = tag.split_once(' ').unwrap_or((tag, ""));
            let parts: Vec<&str> = rest.split('"').collect();
            assert_eq!(parts.len() % 2, 1, "quotes are paired: {tag}");
            let pairs = parts
                .chunks_exact(2)
                .map(|pair| (pair[0].trim().trim_end_matches('=').to_owned(), pair[1].to_owned()));
            found.push((name.to_owned(), pairs.collect()));
            if !closed {
                open.push(name.to_owned());
            }
        }
        assert!(open.is_empty(), "{open:?} stay open");
        found
    }

    fn attribute<'e>(element: &'e Element, name: &str) -> &'e str {
        element.1.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    fn polylines(xml: &str, class: &str) -> Vec<Vec<(f64, f64)>> {
        let points = |text: &str| {
            let pair = |pair: &str| {
                let (x, y) = pair.split_once(',').unwrap();
                (x.parse().unwrap(), y.parse().unwrap())
            };
            text.split(' ').map(pair).collect()
        };
        let all = elements(xml);
        let lines = all.iter().filter(|e| e.0 == "polyline" && attribute(e, "class") == class);
        lines.map(|line| points(attribute(line, "points"))).collect()
    }

    #[test]
    fn points_lie_where_their_figures_say() {
        let xml = plotted(FIGURES).unwrap();
        let measured = polylines(&xml, "measured");
        let [by_batch, by_depth] = &measured[..] else { panic!("{measured:?}") };
        // Sorted by the batch; doubling it moves as far each time, and so does doubling the rate.
        let step = |from: (f64, f64), to: (f64, f64)| (to.0 - from.0, to.1 - from.1);
        let (first, second) = (step(by_batch[0], by_batch[1]), step(by_batch[1], by_batch[2]));
        assert!(first.0 > 10.0 && (first.0 - second.0).abs() < 0.2, "{by_batch:?}");
        assert!(first.1 < -10.0 && (first.1 - second.1).abs() < 0.2, "up is faster: {by_batch:?}");
        // The limits are twice the rates: one such step above.
        let limits = polylines(&xml, "limit");
        assert!((limits[0][0].1 - by_batch[0].1 - first.1).abs() < 0.2, "{limits:?}");
        assert!((limits[0][2].0 - by_batch[2].0).abs() < 1e-9);
        assert!(by_depth[1].0 > by_depth[0].0 && by_depth[1].1 > by_depth[0].1, "{by_depth:?}");
        let markers = elements(&xml).iter().filter(|e| attribute(e, "class") == "marker").count();
        assert_eq!(markers, 5, "one for each point of a line");
    }

    #[test]
    fn text_is_there_and_escaped() {
        let xml = plotted(FIGURES).unwrap();
        for text in
            ["A &amp; B", "one-0.5b, 64 tokens deep", "one-0.5b, 1 sequence", "sequences at once", "tokens/s"]
        {
            assert!(xml.contains(text), "{text}: {xml}");
        }
        assert!(!xml.contains("NaN") && !xml.contains("inf"), "{xml}");
    }

    #[test]
    fn what_is_no_figure_is_refused_with_its_file() {
        let refused = |text: &str| match plotted(text) {
            Err(CommandError::Usage(reason)) => reason,
            other => panic!("{other:?}"),
        };
        assert!(refused("[]").contains("figures.json"));
        assert!(refused(&FIGURES.replace("100,", "-1,")).contains("cannot be drawn"));
        assert!(refused(&FIGURES.replace("\"batch\": 2", "\"batch\": 0")).contains("cannot be drawn"));
        let one = r#"{ "model": "m", "results": [{ "batch": 1, "depth": 1, "tokens_per_second": 1 }] }"#;
        assert!(refused(one).contains("nothing to draw"));
    }

    #[test]
    fn the_committed_plot_is_what_the_committed_figures_make() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench");
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|ending| ending == "json"));
        files.sort();
        let mut made = vec![];
        run(&PlotArgs { files, output: None }, &mut made).unwrap();
        let committed = std::fs::read(folder.join("figures.svg")).unwrap();
        assert!(made == committed, "make it again: bench plot bench/*.json -o bench/figures.svg");
    }
}
