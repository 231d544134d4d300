//! Texts with places to fill in: `Hi {{name}}`.
//!
//! A value is data: what it holds is written as it stands and never read as a template again.

use std::fmt;

use serde_json::{Map, Value};

/// Characters in the name of a variable, at the most.
const LONGEST_NAME: usize = 64;

/// Why a text is not a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplate {
    /// `{{` without `}}`.
    #[error("`{{{{` at character {0} is not closed by `}}}}`")]
    Open(usize),
    /// `}}` without `{{`.
    #[error("`}}}}` at character {0} closes nothing")]
    Closed(usize),
    /// What stands between the braces is no name.
    #[error(
        "between `{{{{` and `}}}}` at character {0} there must be a name: 1 to 64 letters, digits or `_`, beginning with a letter"
    )]
    Name(usize),
}

/// Why a template cannot be filled in with these values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfilled {
    /// There is no value for this variable.
    #[error("the template needs a value for `{0}`")]
    Missing(String),
    /// The value of this variable is not text, a number, true or false.
    #[error("must be text, a number, true or false")]
    NotText(String),
    /// The text would be longer than is allowed.
    #[error("the text would be too long")]
    TooLong,
}

#[derive(Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Variable(String),
}

/// A text with places to fill in.
#[derive(Clone, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

// It holds message text, which belongs in no log.
impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Template(…)")
    }
}

impl Template {
    /// Reads a template: text with `{{name}}` where a value goes. Single braces are text.
    ///
    /// # Errors
    /// [`InvalidTemplate`], with the place.
    pub fn parse(text: &str) -> Result<Self, InvalidTemplate> {
        let mut pieces = Vec::new();
        let mut rest = text;
        let place = |rest: &str| text.chars().count() - rest.chars().count() + 1;
        while !rest.is_empty() {
            let (before, after) = match rest.split_once("{{") {
                Some((before, after)) => (before, Some(after)),
                None => (rest, None),
            };
            if let Some((well, _)) = before.split_once("}}") {
                return Err(InvalidTemplate::Closed(place(rest) + well.chars().count()));
            }
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            let Some(after) = after else { break };
            let at = place(after) - 2;
            let (name, behind) = after.split_once("}}").ok_or(InvalidTemplate::Open(at))?;
            let name = name.trim_matches(' ');
            let fits = name.len() <= LONGEST_NAME
                && name.starts_with(|first: char| first.is_ascii_alphabetic())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if !fits {
                return Err(InvalidTemplate::Name(at));
            }
            pieces.push(Piece::Variable(name.to_owned()));
            rest = behind;
        }
        Ok(Self(pieces))
    }

    /// The text with `values` filled in, of at most `most` characters.
    ///
    /// # Errors
    /// [`Unfilled`].
    pub fn fill(&self, values: &Map<String, Value>, most: usize) -> Result<String, Unfilled> {
        let mut text = String::new();
        let mut length = 0;
        let mut add = |piece: &str| {
            length += piece.chars().count();
            text.push_str(piece);
            // Checked piece by piece: a short template can ask for a long value many times.
            if length > most { Err(Unfilled::TooLong) } else { Ok(()) }
        };
        for piece in &self.0 {
            match piece {
                Piece::Text(piece) => add(piece)?,
                Piece::Variable(name) => match values.get(name) {
                    None => return Err(Unfilled::Missing(name.clone())),
                    Some(Value::String(value)) => add(value)?,
                    Some(Value::Number(value)) => add(&value.to_string())?,
                    Some(Value::Bool(value)) => add(if *value { "true" } else { "false" })?,
                    Some(Value::Null | Value::Array(_) | Value::Object(_)) => {
                        return Err(Unfilled::NotText(name.clone()));
                    }
                },
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fill(template: &str, values: Value) -> Result<String, Unfilled> {
        let Value::Object(values) = values else { panic!("an object") };
        Template::parse(template).unwrap().fill(&values, 50)
    }

    #[test]
    fn values_are_written_as_they_stand() {
        let values = json!({"name": "{{n}} é {", "n": 2.5, "ok": true, "unused": null});
        assert_eq!(fill("Hi {{name}}, {{ n }} {x} {{ok}}", values).unwrap(), "Hi {{n}} é {, 2.5 {x} true");
        assert_eq!(fill("", json!({})).unwrap(), "");
        assert_eq!(fill("{{a}}{{a}}", json!({"a": "}}"})).unwrap(), "}}}}");
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(fill("{{a}} {{b}}", json!({"a": ""})), Err(Unfilled::Missing("b".to_owned())));
        for value in [json!(null), json!([]), json!({})] {
            assert_eq!(fill("{{a}}", json!({ "a": value })), Err(Unfilled::NotText("a".to_owned())));
        }
        let much = "{{a}}".repeat(1000);
        assert_eq!(fill(&much, json!({"a": "x".repeat(50)})), Err(Unfilled::TooLong));
        assert_eq!(fill("{{a}}", json!({"a": "é".repeat(50)})), Ok("é".repeat(50)));
    }

    #[test]
    fn broken_braces_are_found() {
        for (text, fault) in [
            ("ü {{name", InvalidTemplate::Open(3)),
            ("{{", InvalidTemplate::Open(1)),
            ("a }} b", InvalidTemplate::Closed(3)),
            ("{{a}} b }}", InvalidTemplate::Closed(9)),
            ("{{}}", InvalidTemplate::Name(1)),
            ("ab{{1a}}", InvalidTemplate::Name(3)),
            ("{{a b}}", InvalidTemplate::Name(1)),
            ("{{a.b}}", InvalidTemplate::Name(1)),
            ("{{#if a}}x{{/if}}", InvalidTemplate::Name(1)),
            ("{{ü}}", InvalidTemplate::Name(1)),
            ("{{{a}}}", InvalidTemplate::Name(1)),
        ] {
            assert_eq!(Template::parse(text), Err(fault), "{text}");
        }
    }
}
