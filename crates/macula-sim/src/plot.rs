//! Pictures of a run, as SVG.

use std::path::Path;

use plotters::prelude::*;

use crate::histogram::Histogram;
use crate::summary::Summary;

/// A picture could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw {file}: {reason}")]
pub struct PlotError {
    file: String,
    reason: String,
}

const SIZE: (u32, u32) = (900, 520);

/// Draws what a run has to show into a directory; returns the names of the files.
pub fn plot(summary: &Summary, directory: &Path) -> Result<Vec<String>, PlotError> {
    let mut files = Vec::new();
    let mut draw = |name: &str, drawn: Result<(), String>| match drawn {
        Ok(()) => {
            files.push(name.to_owned());
            Ok(())
        }
        Err(reason) => Err(PlotError { file: name.to_owned(), reason }),
    };
    let of = format!("{}, {} nodes, seed {}", summary.scenario, summary.nodes, summary.seed);
    let path = |name: &str| directory.join(name);
    let hops = summary.hops();
    if hops.total() > 0 {
        let title = format!("Hops of lookups: {of}");
        let drawn = bars(&path("hops.svg"), &title, "hops", &hops);
        draw("hops.svg", text(drawn))?;
    }
    if summary.links.total() > 0 {
        let title = format!("Links per node: {of}");
        let drawn = bars(&path("links.svg"), &title, "links", &summary.links);
        draw("links.svg", text(drawn))?;
    }
    if !summary.timeline.is_empty() {
        let drawn = timeline(&path("timeline.svg"), &format!("Over time: {of}"), summary);
        draw("timeline.svg", text(drawn))?;
    }
    Ok(files)
}

/// One size of a sweep: nodes, links (mean, p99), hops (mean, p99).
type Size = (u32, f64, f64, f64, f64);

/// Draws hops and links against the number of nodes.
pub fn plot_sweep(summaries: &[Summary], directory: &Path) -> Result<Vec<String>, PlotError> {
    let sizes: Vec<Size> = summaries
        .iter()
        .map(|s| {
            let hops = s.hops();
            let (links, far) = (s.links.mean(), s.links.quantile(0.99) as f64);
            (s.nodes, links, far, hops.mean(), hops.quantile(0.99) as f64)
        })
        .collect();
    let mut files = Vec::new();
    for (name, what, pick) in [
        ("hops-vs-n.svg", "Hops", (|s: &Size| (s.3, s.4)) as fn(&Size) -> (f64, f64)),
        ("links-vs-n.svg", "Links per node", |s| (s.1, s.2)),
    ] {
        let points: Vec<(f64, f64, f64)> = sizes
            .iter()
            .map(|size| {
                let (mean, far) = pick(size);
                (f64::from(size.0), mean, far)
            })
            .collect();
        text(against_n(&directory.join(name), what, &points))
            .map_err(|reason| PlotError { file: name.to_owned(), reason })?;
        files.push(name.to_owned());
    }
    Ok(files)
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn text(drawn: Drawn) -> Result<(), String> {
    drawn.map_err(|error| error.to_string())
}

fn bars(path: &Path, title: &str, unit: &str, histogram: &Histogram) -> Drawn {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let end = histogram.max() as f64 + 1.0;
    let total = histogram.total().max(1) as f64;
    let top = histogram.counts().iter().copied().max().unwrap_or(1) as f64 / total * 100.0;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(55)
        .build_cartesian_2d(0.0..end, 0.0..top * 1.1)?;
    chart.configure_mesh().disable_x_mesh().x_desc(unit).y_desc("share, %").draw()?;
    chart.draw_series(histogram.counts().iter().enumerate().map(|(number, count)| {
        let (left, height) = (number as f64, *count as f64 / total * 100.0);
        Rectangle::new([(left + 0.1, 0.0), (left + 0.9, height)], BLUE.mix(0.6).filled())
    }))?;
    area.present()?;
    Ok(())
}

fn timeline(path: &Path, title: &str, summary: &Summary) -> Drawn {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let seconds: Vec<f64> = summary.timeline.keys().map(|second| *second as f64).collect();
    let begin = seconds.first().copied().unwrap_or(0.0);
    let faults = summary.faults.iter().map(|(at, _)| *at);
    let begin = faults.clone().fold(begin, f64::min) - 5.0;
    let end = faults.fold(seconds.last().copied().unwrap_or(1.0), f64::max) + 5.0;
    let share = |part: u64, all: u64| 100.0 * part as f64 / all as f64;
    let lookups: Vec<(f64, f64)> = summary
        .timeline
        .iter()
        .filter(|(_, s)| s.lookups > 0)
        .map(|(second, s)| (*second as f64, share(s.right, s.lookups)))
        .collect();
    let deliveries: Vec<(f64, f64)> = summary
        .timeline
        .iter()
        .filter(|(_, s)| s.got + s.missing > 0)
        .map(|(second, s)| (*second as f64, share(s.got, s.got + s.missing)))
        .collect();
    let low = lookups.iter().chain(&deliveries).map(|(_, y)| *y).fold(99.0, f64::min);
    let low = (low - 1.0).max(0.0);
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(55)
        .build_cartesian_2d(begin..end, low..100.5)?;
    chart.configure_mesh().x_desc("virtual seconds").y_desc("%").draw()?;
    for (name, points, colour) in
        [("lookups right", lookups, BLUE), ("delivered", deliveries, GREEN)]
    {
        if !points.is_empty() {
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour));
        }
    }
    for (at, name) in &summary.faults {
        let line = [(*at, low), (*at, 100.5)];
        chart.draw_series([PathElement::new(line, RED.mix(0.7))])?;
        let label = Text::new(name.clone(), (*at, low + (100.5 - low) * 0.03), ("sans-serif", 13));
        chart.draw_series([label])?;
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}

fn against_n(path: &Path, what: &str, points: &[(f64, f64, f64)]) -> Drawn {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let first = points.first().map_or(1.0, |point| point.0);
    let last = points.last().map_or(10.0, |point| point.0).max(first + 1.0);
    let top = points.iter().map(|point| point.2).fold(1.0, f64::max) * 1.15;
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("{what} against nodes"), ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(55)
        .build_cartesian_2d((first * 0.9..last * 1.1).log_scale(), 0.0..top)?;
    chart.configure_mesh().x_desc("nodes").y_desc(what).draw()?;
    for (name, colour, line) in [
        ("mean", BLUE, points.iter().map(|p| (p.0, p.1)).collect::<Vec<_>>()),
        ("p99", RED, points.iter().map(|p| (p.0, p.2)).collect()),
    ] {
        let dots = line.clone();
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour));
        chart.draw_series(dots.into_iter().map(|dot| Circle::new(dot, 3, colour.filled())))?;
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}
