//! What the audience sees: events as they happen, and the table at the end.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::out::{self, Paint};

/// Shows the demo to people, or to programs as JSON lines.
#[derive(Debug)]
pub(crate) struct Show {
    json: bool,
    paint: Paint,
    started: std::time::Instant,
}

/// How a scenario went: one row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Name.
    pub(crate) scenario: &'static str,
    /// Messages or calls that should arrive, over all receivers.
    pub(crate) sent: u64,
    /// What arrived.
    pub(crate) delivered: u64,
    /// Latencies, microseconds.
    pub(crate) latencies: Histogram<u64>,
    /// What did not hold; empty: all did.
    pub(crate) broken: Vec<String>,
}

impl Row {
    /// A row from the latencies of its receivers.
    pub(crate) fn new(scenario: &'static str, sent: u64, latencies_us: &[u64]) -> Self {
        let mut latencies = histogram();
        for latency in latencies_us {
            latencies.saturating_record((*latency).max(1));
        }
        let delivered = latencies_us.len() as u64;
        let mut row = Self { scenario, sent, delivered, latencies, broken: Vec::new() };
        row.must(delivered == sent, || format!("{delivered} of {sent} arrived"));
        row
    }

    /// Notes what did not hold.
    pub(crate) fn must(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.broken.push(otherwise());
        }
    }

    /// Whether everything held.
    pub(crate) fn held(&self) -> bool {
        self.broken.is_empty()
    }

    fn quantile(&self, quantile: f64) -> Duration {
        Duration::from_micros(self.latencies.value_at_quantile(quantile))
    }

    fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.delivered)
    }
}

/// An empty histogram of microseconds, up to a minute, to three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3)
        .unwrap_or_else(|_| unreachable!("the bounds are constants in range"))
}

impl Show {
    /// A show for people, or for programs.
    pub(crate) fn new(json: bool) -> Self {
        Self { json, paint: Paint::stdout(), started: std::time::Instant::now() }
    }

    /// Begins a scenario.
    pub(crate) fn scene(&self, name: &str, about: &str) -> Result<(), Failure> {
        if self.json {
            return out::json(&self.stamped("scene", &[("scene", json!(name))]));
        }
        out::line("")?;
        out::line(format_args!("{}  {}", self.paint.bold(name), self.paint.dim(about)))
    }

    /// Something happened.
    pub(crate) fn event(&self, who: &str, what: &str) -> Result<(), Failure> {
        if self.json {
            return out::json(
                &self.stamped("event", &[("who", json!(who)), ("what", json!(what))]),
            );
        }
        let at = format!("{:5.2}s", self.started.elapsed().as_secs_f64());
        let who = self.paint.cyan(format_args!("{who:<8}"));
        out::line(format_args!("  {}  {who} {what}", self.paint.dim(at)))
    }

    /// A scenario is over.
    pub(crate) fn verdict(&self, row: &Row) -> Result<(), Failure> {
        let text = if row.held() { "held".to_owned() } else { row.broken.join("; ") };
        if self.json {
            let (name, text) = (json!(row.scenario), json!(text));
            return out::json(&self.stamped("verdict", &[("scene", name), ("what", text)]));
        }
        let text = if row.held() {
            self.paint.green(format_args!("✓ {text}"))
        } else {
            self.paint.red(format_args!("✗ {text}"))
        };
        out::line(format_args!("  {text}"))
    }

    /// The table.
    pub(crate) fn summary(&self, rows: &[Row]) -> Result<(), Failure> {
        if self.json {
            let scenarios: Vec<Value> = rows.iter().map(row_json).collect();
            let held = json!(rows.iter().all(Row::held));
            return out::json(
                &self.stamped("summary", &[("held", held), ("scenarios", json!(scenarios))]),
            );
        }
        out::line("")?;
        let head = format!(
            "{:<18} {:>8} {:>10} {:>6} {:>10} {:>10}  verdict",
            "scenario", "sent", "delivered", "lost", "p50", "p99"
        );
        out::line(self.paint.bold(head))?;
        for row in rows {
            let verdict =
                if row.held() { self.paint.green("held") } else { self.paint.red("BROKEN") };
            out::line(format_args!(
                "{:<18} {:>8} {:>10} {:>6} {:>10} {:>10}  {verdict}",
                row.scenario,
                out::human_count(row.sent),
                out::human_count(row.delivered),
                row.lost(),
                out::human_duration(row.quantile(0.5)),
                out::human_duration(row.quantile(0.99)),
            ))?;
        }
        out::line("")?;
        let seconds = self.started.elapsed().as_secs_f64();
        let total = if rows.iter().all(Row::held) {
            self.paint.green(format_args!("Everything held, in {seconds:.1} s."))
        } else {
            self.paint.red(format_args!("Not everything held, in {seconds:.1} s."))
        };
        out::line(total)
    }

    /// What the audience can do next.
    pub(crate) fn commands(&self, about: &str, commands: &[String]) -> Result<(), Failure> {
        if self.json {
            return out::json(&self.stamped("try", &[("commands", json!(commands))]));
        }
        out::line("")?;
        out::line(self.paint.bold(about))?;
        commands.iter().try_for_each(|command| out::line(format_args!("  {command}")))
    }

    fn stamped(&self, event: &str, fields: &[(&str, Value)]) -> Value {
        let mut object = serde_json::Map::new();
        object.insert("event".to_owned(), json!(event));
        object.insert("at_ms".to_owned(), json!(self.started.elapsed().as_millis() as u64));
        for (name, value) in fields {
            object.insert((*name).to_owned(), value.clone());
        }
        Value::Object(object)
    }
}

fn row_json(row: &Row) -> Value {
    json!({
        "scenario": row.scenario,
        "sent": row.sent,
        "delivered": row.delivered,
        "lost": row.lost(),
        "p50_us": row.quantile(0.5).as_micros() as u64,
        "p99_us": row.quantile(0.99).as_micros() as u64,
        "held": row.held(),
        "broken": row.broken,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_holds_when_everything_arrived() {
        let mut row = Row::new("chat", 3, &[1_000, 2_000, 3_000]);
        assert!(row.held());
        assert!(row.quantile(0.5).abs_diff(Duration::from_millis(2)) < Duration::from_micros(10));
        row.must(false, || "order".to_owned());
        assert!(!row.held());
        let row = Row::new("chat", 3, &[1_000]);
        assert_eq!((row.lost(), row.held()), (2, false));
    }
}
