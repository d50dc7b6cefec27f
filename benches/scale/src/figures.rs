//! Figures for people and programs: a table, JSON, CSV and a graph.

use std::{
    fmt::{self, Write as _},
    fs,
    path::Path,
};

use plotters::{
    chart::{ChartBuilder, SeriesLabelPosition},
    element::PathElement,
    prelude::{BLACK, BLUE, Circle, IntoDrawingArea, RED, SVGBackend, WHITE},
    series::LineSeries,
    style::{Color, RGBColor},
};
use serde::Serialize;

use crate::{Failure, io};

/// What is promised at the largest number.
const CPU_GOAL_CORES: f64 = 0.5;
const RSS_GOAL_MB: f64 = 300.0;
const POLICY_GOAL_MS: f64 = 100.0;
/// Of one report a second from each sidecar; the others are late by less than a second, and in the next second's count.
const REPORTS_SHARE: f64 = 0.95;

/// At one number of sidecars.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    pub(crate) sidecars: usize,
    pub(crate) cpu_cores: f64,
    pub(crate) cpu_us_per_report: f64,
    pub(crate) rss_mb: f64,
    pub(crate) reports_per_second: f64,
    pub(crate) policy_all_p50_ms: f64,
    pub(crate) policy_all_p99_ms: f64,
    pub(crate) policy_one_p50_ms: f64,
    pub(crate) policy_one_p99_ms: f64,
    /// From the step before until all had their first report taken.
    pub(crate) joined_seconds: f64,
    pub(crate) reports_lost: u64,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = format!("{:.1} / {:.1} ms", self.policy_all_p50_ms, self.policy_all_p99_ms);
        let one = format!("{:.1} / {:.1} ms", self.policy_one_p50_ms, self.policy_one_p99_ms);
        write!(
            f,
            "{:>9} {:>10.3} {:>12.1} {:>9.0} {all:>22} {one:>22} {:>11.0}",
            self.sidecars, self.cpu_cores, self.cpu_us_per_report, self.rss_mb, self.reports_per_second
        )
    }
}

/// Of sorted values; 0 of none.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    sorted.get((sorted.len().saturating_sub(1) as f64 * q).round() as usize).copied().unwrap_or(0.0)
}

/// What of the promises does not hold: in the same words as they are given.
pub(crate) fn broken(rows: &[Row]) -> Vec<String> {
    let mut broken = Vec::new();
    for row in rows {
        for (what, is, goal) in [
            ("cores", row.cpu_cores, CPU_GOAL_CORES),
            ("MB of memory", row.rss_mb, RSS_GOAL_MB),
            ("ms until a policy for one has come, p50", row.policy_one_p50_ms, POLICY_GOAL_MS),
            ("ms until a policy for all has come, p50", row.policy_all_p50_ms, POLICY_GOAL_MS),
        ] {
            if is >= goal {
                broken.push(format!("{} sidecars: {is:.2} {what}; less than {goal} were promised", row.sidecars));
            }
        }
        if row.reports_lost > 0 {
            broken.push(format!("{} sidecars: {} reports were lost", row.sidecars, row.reports_lost));
        }
        let wanted = row.sidecars as f64 * REPORTS_SHARE;
        if row.reports_per_second < wanted {
            broken.push(format!("{} sidecars: {:.0} reports a second; at least {wanted:.0} were to be taken", row.sidecars, row.reports_per_second));
        }
    }
    broken
}

/// Writes scale.json, scale.csv and scale.svg into `folder`.
pub(crate) fn write(folder: &Path, rows: &[Row]) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(io("the folder for figures"))?;
    let json = serde_json::to_string_pretty(rows).map_err(|error| Failure::Other(error.to_string()))?;
    fs::write(folder.join("scale.json"), json + "\n").map_err(io("scale.json"))?;
    let mut csv =
        "sidecars,cpu_cores,cpu_us_per_report,rss_mb,reports_per_second,policy_all_p50_ms,policy_all_p99_ms,policy_one_p50_ms,policy_one_p99_ms\n".to_owned();
    for row in rows {
        let Row {
            sidecars,
            cpu_cores,
            cpu_us_per_report,
            rss_mb,
            reports_per_second,
            policy_all_p50_ms,
            policy_all_p99_ms,
            policy_one_p50_ms,
            policy_one_p99_ms,
            ..
        } = row;
        let _ = writeln!(
            csv,
            "{sidecars},{cpu_cores:.4},{cpu_us_per_report:.2},{rss_mb:.1},{reports_per_second:.1},{policy_all_p50_ms:.2},{policy_all_p99_ms:.2},{policy_one_p50_ms:.2},{policy_one_p99_ms:.2}"
        );
    }
    fs::write(folder.join("scale.csv"), csv).map_err(io("scale.csv"))?;
    draw(&folder.join("scale.svg"), rows).map_err(|error| Failure::Other(format!("scale.svg: {error}")))
}

/// Its name, its points and its colour.
type Line<'a> = (&'a str, Vec<(f64, f64)>, RGBColor);
type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(file: &Path, rows: &[Row]) -> Drawn {
    let whole = SVGBackend::new(file, (1080, 340)).into_drawing_area();
    whole.fill(&WHITE)?;
    let panels = whole.split_evenly((1, 3));
    let of = |what: fn(&Row) -> f64| rows.iter().map(|row| (row.sidecars as f64, what(row))).collect::<Vec<_>>();
    panel(&panels[0], "CPU of the controller, cores", CPU_GOAL_CORES, &[("one report a second each", of(|row| row.cpu_cores), BLUE)])?;
    panel(&panels[1], "Memory of the controller (RSS), MB", RSS_GOAL_MB, &[("one TLS connection each", of(|row| row.rss_mb), BLUE)])?;
    let policies = [("for one, p50", of(|row| row.policy_one_p50_ms), BLUE), ("for all at once, p50", of(|row| row.policy_all_p50_ms), RGBColor(0, 128, 90))];
    panel(&panels[2], "A policy reaches a sidecar, ms", POLICY_GOAL_MS, &policies)?;
    whole.present()?;
    Ok(())
}

fn panel(area: &plotters::drawing::DrawingArea<SVGBackend<'_>, plotters::coord::Shift>, title: &str, goal: f64, lines: &[Line<'_>]) -> Drawn {
    let all = || lines.iter().flat_map(|(_, points, _)| points);
    let right = all().map(|(x, _)| *x).fold(1.0, f64::max) * 1.05;
    let top = all().map(|(_, y)| *y).fold(goal, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15))
        .margin(10)
        .x_label_area_size(34)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart.configure_mesh().x_desc("sidecars").x_labels(5).y_labels(6).x_label_formatter(&|x| format!("{x:.0}")).draw()?;
    chart.draw_series(LineSeries::new([(0.0, goal), (right, goal)], &RED))?.label("goal").legend(|(x, y)| PathElement::new([(x, y), (x + 14, y)], RED));
    for (name, points, colour) in lines {
        let colour = *colour;
        chart.draw_series(LineSeries::new(points.iter().copied(), &colour))?.label(*name).legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
    }
    chart.configure_series_labels().position(SeriesLabelPosition::UpperLeft).background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.2)).draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_that_does_not_hold_is_named() {
        let good = Row {
            sidecars: 10_000,
            cpu_cores: 0.2,
            cpu_us_per_report: 20.0,
            rss_mb: 133.0,
            reports_per_second: 9_990.0,
            policy_all_p50_ms: 90.0,
            policy_all_p99_ms: 180.0,
            policy_one_p50_ms: 0.1,
            policy_one_p99_ms: 0.3,
            joined_seconds: 20.0,
            reports_lost: 0,
        };
        assert_eq!(broken(std::slice::from_ref(&good)), [""; 0]);
        let bad = Row { cpu_cores: 0.51, rss_mb: 300.0, reports_per_second: 4_000.0, reports_lost: 2, ..good };
        let told = broken(&[bad]);
        assert!(told.len() == 4 && told[0].contains("0.51 cores") && told[1].contains("300.00 MB"), "{told:?}");
    }
}
