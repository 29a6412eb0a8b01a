//! What was measured, for people and as JSON.

use crate::machine;
use serde_json::{Value, json};

/// What a figure has to reach.
#[derive(Clone, Copy)]
pub enum Bar {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

impl Bar {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!("≥ {}", number(least)),
            Self::AtMost(most) => format!("≤ {}", number(most)),
        }
    }
}

/// Every row so far.
pub struct Table {
    measure: &'static str,
    rows: Vec<Value>,
}

impl Table {
    pub fn new() -> Self {
        println!("{} processors, load average {}", machine::processors(), machine::load());
        Self { measure: "", rows: Vec::new() }
    }

    /// A measurement begins.
    pub fn begin(&mut self, measure: &'static str) {
        self.measure = measure;
        println!("\n{measure} (load average {})", machine::load());
    }

    /// A figure without a bar.
    pub fn row(&mut self, what: &str, value: f64, unit: &str) {
        self.add(what, value, unit, None);
    }

    /// A figure that has to reach something.
    pub fn barred(&mut self, what: &str, value: f64, unit: &str, bar: Bar) {
        self.add(what, value, unit, Some(bar));
    }

    fn add(&mut self, what: &str, value: f64, unit: &str, bar: Option<Bar>) {
        let verdict = bar.map(|bar| format!("{} {}", bar.text(), if bar.is_met(value) { "met" } else { "MISSED" }));
        println!("  {what:<62} {:>12} {unit:<9} {}", number(value), verdict.clone().unwrap_or_default());
        let load = machine::load();
        let met = bar.map(|bar| bar.is_met(value));
        let bar = bar.map(Bar::text);
        self.rows.push(json!({
            "measure": self.measure, "what": what, "value": value, "unit": unit, "bar": bar, "met": met, "load": load,
        }));
    }

    pub fn json(&self) -> Value {
        json!({ "processors": machine::processors(), "kernel": machine::kernel(), "rows": self.rows })
    }
}

/// Three digits that matter.
fn number(value: f64) -> String {
    match value.abs() {
        big if big >= 1000.0 => grouped(value.round() as i64),
        some if some >= 100.0 => format!("{value:.0}"),
        few if few >= 10.0 => format!("{value:.1}"),
        few if few >= 1.0 => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.3}"),
    }
}

fn grouped(value: i64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
