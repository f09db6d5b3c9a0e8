//! A timeline as a picture: a lane for each client, a bar for each operation.

use std::fmt::Write as _;
use std::time::Duration;

use super::html::Safe;
use crate::timeline::{Bar, Kind, Timeline};

/// A row of bars, in pixels.
const ROW: usize = 22;
/// Between two lanes.
const GAP: usize = 8;
/// The axis above the lanes.
const AXIS: usize = 22;
/// A narrow letter.
const LETTER: f64 = 6.7;
/// What lies behind the last moment, for bars that never ended.
const BEYOND: f64 = 70.0;
/// The least width of the whole.
const NARROWEST: f64 = 640.0;

/// What all pictures of a page share: the fading of bars without an end.
pub(super) fn definitions(out: &mut String) {
    out.push_str("<svg class=\"defs\" aria-hidden=\"true\"><defs>");
    for kind in ["unknown", "held", "done", "fault"] {
        let _ = write!(
            out,
            "<linearGradient id=\"fade-{kind}\"><stop offset=\"0.2\"/><stop offset=\"1\" stop-opacity=\"0\"/></linearGradient>"
        );
    }
    out.push_str("</defs></svg>\n");
}

/// The picture, with a legend and a place where the bar under the pointer is told.
pub(super) fn timeline(out: &mut String, timeline: &Timeline) {
    let scale = Scale::of(timeline);
    let lanes = stacked(timeline, &scale);
    let bottom = lanes.last().map_or(AXIS, |lane| lane.bottom);
    out.push_str("<figure class=\"timeline\"><div class=\"view\">");
    names(out, timeline, &lanes, bottom);
    let width = scale.width + BEYOND;
    let _ = write!(
        out,
        "<svg width=\"{width:.0}\" height=\"{bottom}\" viewBox=\"0 0 {width:.0} {bottom}\" role=\"group\" aria-label=\"history of {} operations\">",
        timeline.bars.len()
    );
    for lane in &lanes {
        let _ = write!(
            out,
            "<rect class=\"lane\" x=\"0\" y=\"{}\" width=\"{width:.0}\" height=\"{}\"/>",
            lane.top,
            lane.bottom - GAP - lane.top
        );
    }
    axis(out, &scale, bottom);
    let mut focus = timeline
        .bars
        .iter()
        .position(|bar| bar.offends)
        .unwrap_or(0);
    if timeline.bars.is_empty() {
        focus = usize::MAX;
    }
    for (index, bar) in timeline.bars.iter().enumerate() {
        draw(out, timeline, bar, &scale, &lanes, index, index == focus);
    }
    out.push_str("</svg></div>");
    caption(out, timeline);
    out.push_str("</figure>\n");
}

/// From moments to pixels. In between two moments of the history there is as much room as they are
/// apart, but neither so little that a bar would vanish nor so much that the rest would.
struct Scale {
    moments: Vec<(Duration, f64)>,
    width: f64,
}

impl Scale {
    fn of(timeline: &Timeline) -> Self {
        let mut times: Vec<Duration> = timeline
            .bars
            .iter()
            .flat_map(|bar| [Some(bar.from), bar.to])
            .flatten()
            .collect();
        times.sort_unstable();
        times.dedup();
        let gaps: Vec<f64> = times
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).as_secs_f64())
            .collect();
        let mut sorted = gaps.clone();
        sorted.sort_by(f64::total_cmp);
        let usual = sorted
            .get(sorted.len() * 3 / 4)
            .copied()
            .unwrap_or(1.0)
            .max(1e-9);
        let mut at = 12.0;
        let mut places = vec![at];
        for gap in gaps {
            at += 5.0 + 30.0 * (gap / usual).sqrt().min(1.5);
            places.push(at);
        }
        let stretch = (NARROWEST / at).max(legible(timeline, &times, &places));
        let moments = times
            .into_iter()
            .zip(places.iter().map(|place| place * stretch));
        Self {
            moments: moments.collect(),
            width: at * stretch,
        }
    }

    fn x(&self, moment: Duration) -> f64 {
        let place = self.moments.partition_point(|(other, _)| *other < moment);
        self.moments.get(place).map_or(self.width, |(_, x)| *x)
    }

    fn span(&self, bar: &Bar) -> (f64, f64) {
        let from = self.x(bar.from);
        let to = bar.to.map_or(self.width + BEYOND, |to| self.x(to));
        // A moment has no width, but is to be seen.
        (from, to.max(from + 5.0))
    }

    /// The span with the label, which stands beside what went wrong if there is no room in it.
    fn room(&self, bar: &Bar) -> (f64, f64) {
        let (from, to) = self.span(bar);
        match is_beside(bar, to - from) {
            true => (from, to + 8.0 + width(&bar.label)),
            false => (from, to),
        }
    }
}

/// Where a lane is drawn, and in which of its rows each of its bars.
struct Lane {
    top: usize,
    bottom: usize,
    rows: Vec<(usize, usize)>,
}

/// Bars of a lane that overlap go below each other.
fn stacked(timeline: &Timeline, scale: &Scale) -> Vec<Lane> {
    let mut top = AXIS;
    let mut lanes = Vec::new();
    for lane in 0..timeline.lanes.len() {
        let (mut ends, mut rows): (Vec<f64>, Vec<(usize, usize)>) = (Vec::new(), Vec::new());
        for (index, bar) in timeline.bars.iter().enumerate() {
            if bar.lane != lane {
                continue;
            }
            let (from, to) = scale.room(bar);
            let row = ends
                .iter()
                .position(|end| *end <= from)
                .unwrap_or(ends.len());
            match ends.get_mut(row) {
                Some(end) => *end = to,
                None => ends.push(to),
            }
            rows.push((index, row));
        }
        let bottom = top + ROW * ends.len().max(1) + GAP;
        lanes.push(Lane { top, bottom, rows });
        top = bottom;
    }
    lanes
}

fn names(out: &mut String, timeline: &Timeline, lanes: &[Lane], bottom: usize) {
    let longest = timeline
        .lanes
        .iter()
        .map(|name| name.chars().count().min(18))
        .max();
    let width = 20 + 7 * longest.unwrap_or_default();
    let _ = write!(
        out,
        "<svg class=\"names\" width=\"{width}\" height=\"{bottom}\" aria-hidden=\"true\">"
    );
    for (name, lane) in timeline.lanes.iter().zip(lanes) {
        let short: String = name.chars().take(18).collect();
        let _ = write!(
            out,
            "<text x=\"10\" y=\"{}\">{}</text>",
            lane.top + 15,
            Safe(&short)
        );
    }
    out.push_str("</svg>");
}

fn axis(out: &mut String, scale: &Scale, bottom: usize) {
    out.push_str("<g class=\"axis\" aria-hidden=\"true\">");
    let mut last = f64::MIN;
    for (moment, x) in &scale.moments {
        if x - last < 110.0 {
            continue;
        }
        last = *x;
        let _ = write!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{}\" y2=\"{bottom}\"/><text x=\"{:.1}\" y=\"13\">{:.2} ms</text>",
            AXIS - 5,
            x + 2.0,
            moment.as_secs_f64() * 1e3
        );
    }
    out.push_str("</g>");
}

fn draw(
    out: &mut String,
    timeline: &Timeline,
    bar: &Bar,
    scale: &Scale,
    lanes: &[Lane],
    index: usize,
    focus: bool,
) {
    let Some(lane) = lanes.get(bar.lane) else {
        return;
    };
    let row = lane
        .rows
        .iter()
        .find(|(other, _)| *other == index)
        .map_or(0, |(_, row)| *row);
    let y = lane.top + ROW * row + 2;
    let (from, to) = scale.span(bar);
    let open = if bar.to.is_none() { " open" } else { "" };
    let offends = if bar.offends { " offends" } else { "" };
    let told = told(timeline, bar);
    let _ = write!(
        out,
        "<g class=\"bar {}{open}{offends}\" tabindex=\"{}\" role=\"img\" data-lane=\"{}\" aria-label=\"{}\"><title>{}</title><rect x=\"{from:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" rx=\"3\"/>",
        bar.kind.word(),
        if focus { 0 } else { -1 },
        bar.lane,
        Safe(&told),
        Safe(&told),
        to - from,
        ROW - 5,
    );
    if is_beside(bar, to - from) {
        let _ = write!(
            out,
            "<text class=\"beside\" x=\"{:.1}\" y=\"{}\">{}</text>",
            to + 4.0,
            y + 13,
            Safe(&bar.label)
        );
    } else if let Some(label) = fitting(&bar.label, to - from - 8.0) {
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{}\">{}</text>",
            from + 4.0,
            y + 13,
            Safe(&label)
        );
    }
    out.push_str("</g>");
}

/// By how much to stretch the scale so that half of the labels have room.
fn legible(timeline: &Timeline, times: &[Duration], places: &[f64]) -> f64 {
    let x = |time| {
        places
            .get(times.partition_point(|other| *other < time))
            .copied()
    };
    let wants = |bar: &Bar| {
        let room = x(bar.to?)? - x(bar.from)?;
        (room > 0.0).then(|| (width(&bar.label) + 9.0) / room)
    };
    let mut wants: Vec<f64> = timeline.bars.iter().filter_map(wants).collect();
    wants.sort_by(f64::total_cmp);
    wants
        .get(wants.len() / 2)
        .map_or(1.0, |usual| usual.clamp(1.0, 3.0))
}

fn width(label: &str) -> f64 {
    u32::try_from(label.chars().count()).map_or(f64::MAX, |count| f64::from(count) * LETTER)
}

/// Whether the label of a bar so wide goes beside it: not to read what went wrong would be a pity.
fn is_beside(bar: &Bar, wide: f64) -> bool {
    let short = bar.label.chars().count() <= 40;
    bar.offends && bar.to.is_some() && short && width(&bar.label) > wide - 8.0
}

/// As much of a label as has room.
fn fitting(label: &str, room: f64) -> Option<String> {
    let fits =
        |count: usize| u32::try_from(count).is_ok_and(|count| f64::from(count) * LETTER <= room);
    let count = label.chars().count();
    if fits(count) {
        return Some(label.to_owned());
    }
    let most = (3..count).rev().find(|count| fits(*count))?;
    let cut: String = label.chars().take(most - 1).collect();
    Some(cut.trim_end().to_owned() + "…")
}

/// A bar in words.
fn told(timeline: &Timeline, bar: &Bar) -> String {
    let name = timeline.lanes.get(bar.lane).map_or("", String::as_str);
    let wrong = if bar.offends { "✗ " } else { "" };
    let words = bar.to_string();
    match words.starts_with(name) {
        true => format!("{wrong}{words}"),
        false => format!("{wrong}{name}: {words}"),
    }
}

fn caption(out: &mut String, timeline: &Timeline) {
    out.push_str("<div class=\"told\" aria-live=\"polite\">");
    let wrong = timeline.bars.iter().filter(|bar| bar.offends);
    let wrong: Vec<String> = wrong.map(|bar| told(timeline, bar)).collect();
    let _ = write!(out, "{}", Safe(&wrong.join("\n")));
    out.push_str("</div><figcaption>");
    let has = |kind: Kind| timeline.bars.iter().any(|bar| bar.kind == kind);
    let kinds = [
        (Kind::Done, "answered"),
        (Kind::Held, "believes that it holds"),
        (Kind::Failed, "no effect"),
        (
            Kind::Unknown,
            "answer unknown: its effect may come at any time later",
        ),
        (Kind::Fault, "fault"),
    ];
    for (kind, words) in kinds.into_iter().filter(|(kind, _)| has(*kind)) {
        let class = kind.word();
        let _ = write!(
            out,
            "<span class=\"key\"><i class=\"{class}\"></i>{words}</span> "
        );
    }
    if timeline.bars.iter().any(|bar| bar.offends) {
        out.push_str("<span class=\"key\"><i class=\"offends\"></i>what went wrong</span> ");
    }
    out.push_str("<span class=\"hint\">Point at a bar, or walk from bar to bar with the arrow keys, to read it.</span> Time runs to the right; stretches in which little happened are shortened.");
    if timeline.left_out > 0 {
        let _ = write!(
            out,
            " {} operations further away are left out.",
            timeline.left_out
        );
    }
    out.push_str("</figcaption>");
}
