//! The rows of CPU time as a picture: each peer's dot stands at how many times as much as a plain TCP copy it takes.

use std::fmt::Write as _;

use crate::{
    peer::{PEERS, Peer},
    table::Row,
};

const COLOURS: [&str; PEERS.len()] = ["#d62728", "#7f7f7f", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e"];
/// Where the scale begins and how long it is; the height of a row, and of what stands above the first.
const LEFT: f64 = 430.0;
const WIDTH: f64 = 560.0;
const LINE: f64 = 30.0;
const TOP: f64 = 54.0;
/// What the scale shows; it is logarithmic.
const LEAST: f64 = 0.4;
const MOST: f64 = 60.0;

fn x(times: f64) -> f64 {
    LEFT + (times.clamp(LEAST, MOST) / LEAST).ln() / (MOST / LEAST).ln() * WIDTH
}

/// The whole file.
pub(crate) fn draw(rows: &[Row]) -> String {
    let rows: Vec<_> = rows.iter().filter_map(|row| Some((row, row.cell(Peer::Copy)?.median.filter(|_| row.unit.starts_with("CPU"))?))).collect();
    let height = TOP + LINE * rows.len() as f64 + 30.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1020\" height=\"{height}\" viewBox=\"0 0 1020 {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"1020\" height=\"{height}\" fill=\"white\"/>\n<text x=\"20\" y=\"22\" font-weight=\"bold\">CPU time, times that of a TCP copy</text>\n"
    );
    for (at, (peer, colour)) in PEERS.iter().zip(COLOURS).enumerate() {
        let at = LEFT + at as f64 * 95.0;
        let _ = writeln!(out, "<circle cx=\"{at}\" cy=\"18\" r=\"5\" fill=\"{colour}\"/><text x=\"{}\" y=\"22\">{}</text>", at + 9.0, peer.name());
    }
    for times in [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0] {
        let (at, bottom) = (x(times), height - 26.0);
        let _ = writeln!(
            out,
            "<line x1=\"{at:.1}\" y1=\"36\" x2=\"{at:.1}\" y2=\"{bottom}\" stroke=\"#ddd\"/><text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{times}</text>",
            height - 10.0
        );
    }
    for (at, (row, copy)) in rows.iter().enumerate() {
        let y = TOP + LINE * at as f64;
        let _ = writeln!(out, "<text x=\"20\" y=\"{}\">{}</text>", y + 4.0, row.title.replace('&', "&amp;").replace('<', "&lt;"));
        // Ours last, so that nobody stands before it.
        for (peer, colour) in PEERS.iter().zip(COLOURS).rev() {
            if let Some(median) = row.cell(*peer).and_then(|cell| cell.median) {
                let _ = writeln!(out, "<circle cx=\"{:.1}\" cy=\"{y}\" r=\"6\" fill=\"{colour}\" fill-opacity=\"0.85\"/>", x(median / copy));
            }
        }
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Samples;

    #[test]
    fn rows_of_cpu_time_alone_are_drawn_each_peer_at_its_share_of_a_copy() {
        let mut samples = Samples::of(&[Peer::Sidecar, Peer::Copy]);
        samples.add(Peer::Sidecar, 22.0, None);
        samples.add(Peer::Copy, 11.0, None);
        let drawn = draw(&[samples.row("a", "one & all", "CPU µs per request", &[]), samples.row("b", "another", "MB", &[])]);
        assert!(drawn.contains("one &amp; all") && !drawn.contains("another"), "{drawn}");
        for times in [1.0, 2.0] {
            assert!(drawn.contains(&format!("<circle cx=\"{:.1}\" cy=\"{TOP}\"", x(times))), "{times} in {drawn}");
        }
    }
}
