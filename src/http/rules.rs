//! Rules that a type alone cannot state, collected so that a caller learns of all the broken ones at once.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::problem::{FieldError, Problem};

/// The broken rules found so far.
#[derive(Debug, Default)]
pub struct Rules(Vec<FieldError>);

impl Rules {
    /// No rule is broken yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a broken rule.
    pub fn broken(&mut self, field: &str, code: &str, message: impl Into<String>) {
        self.0.push(FieldError::new(field, code, message));
    }

    /// Notes a broken rule unless `holds`.
    pub fn check(&mut self, holds: bool, field: &str, code: &str, message: &str) {
        if !holds {
            self.broken(field, code, message);
        }
    }

    /// A name: 1 to `most` characters, none of them a control character, no white space at its ends.
    pub fn name(&mut self, field: &str, text: &str, most: usize) {
        let length = text.chars().count();
        if text.trim().is_empty() {
            self.broken(field, "required", "must not be empty");
        } else if length > most {
            self.broken(field, "too_long", format!("must have at most {most} characters"));
        } else if text.chars().any(char::is_control) {
            self.broken(field, "invalid_character", "must not contain control characters");
        } else if text.trim() != text {
            self.broken(field, "invalid_value", "must not begin or end with white space");
        }
    }

    /// Free text of at most `most` characters.
    pub fn text(&mut self, field: &str, text: &str, most: usize) {
        if text.chars().count() > most {
            self.broken(field, "too_long", format!("must have at most {most} characters"));
        }
    }

    /// At most 20 labels of 1 to 50 characters each. Answers them in order and without repeats.
    pub fn labels(&mut self, field: &str, mut labels: Vec<String>) -> Vec<String> {
        const MOST: usize = 20;
        if labels.len() > MOST {
            self.broken(field, "too_long", format!("must have at most {MOST} labels"));
        }
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b':' | b'-');
        let fits = |label: &String| (1..=50).contains(&label.len()) && label.bytes().all(allowed);
        if let Some(wrong) = labels.iter().position(|label| !fits(label)) {
            let rule = "must have 1 to 50 characters out of a-z, 0-9, _ . : and -";
            self.broken(&format!("{field}[{wrong}]"), "invalid_value", rule);
        }
        labels.sort_unstable();
        labels.dedup();
        labels
    }

    /// A JSON object of at most `most` bytes.
    pub fn object(&mut self, field: &str, json: &Value, most: usize) {
        if !json.is_object() {
            self.broken(field, "invalid_type", "must be an object");
        } else if json.to_string().len() > most {
            self.broken(field, "too_long", format!("must have at most {most} bytes as JSON"));
        }
    }

    /// A time that is still to come.
    pub fn future(&mut self, field: &str, at: DateTime<Utc>, now: DateTime<Utc>) {
        self.check(at > now, field, "out_of_range", "must be in the future");
        self.check(chrono::Datelike::year(&at) <= 9999, field, "out_of_range", "must be before the year 10000");
    }

    /// Passes when no rule is broken.
    ///
    /// # Errors
    /// 422 with every broken rule.
    pub fn finish(self) -> Result<(), Problem> {
        if self.0.is_empty() { Ok(()) } else { Err(Problem::validation(self.0)) }
    }
}
