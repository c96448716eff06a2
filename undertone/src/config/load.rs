//! From texts to settings: the compiled-in defaults, one file over them, the environment over both.
//!
//! The defaults say which keys there are and of which type. So an unknown key is told from a known one before anything
//! is merged, with the place that it stands in and the nearest known name; a text stays a text, even if it looks like
//! a number; and no message repeats a value that could be a secret.

use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::secret;
use crate::config::Config;

/// The defaults, with their documentation.
pub const DEFAULT: &str = include_str!("../../config/default.toml");
/// What variables of the environment begin with.
const PREFIX: &str = "UNDERTONE__";
/// Largest file of settings or of a secret, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Names further away than this are no help.
const SIMILARITY_MIN: f64 = 0.7;

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("read {path}: {problem}; check the path and its permissions")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        problem: String,
    },
    /// A file is not TOML.
    #[error("{path}, line {line}: {problem}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// What the parser said.
        problem: String,
    },
    /// A key that is not known.
    #[error("{place}: there is no setting {key}{}; `undertone config print --default` lists all of them", .nearest.as_ref().map(|n| format!(", did you mean {n}?")).unwrap_or_default())]
    Unknown {
        /// The file or variable.
        place: String,
        /// The key.
        key: String,
        /// The known key that looks most like it.
        nearest: Option<String>,
    },
    /// A value of the wrong kind.
    #[error("{place}: {key} must be {wanted}")]
    Type {
        /// The file or variable.
        place: String,
        /// The key.
        key: String,
        /// What it must be.
        wanted: &'static str,
    },
    /// A value that its type refuses.
    #[error("settings, {0}")]
    Value(String),
    /// Two settings that do not go together, or one that is refused.
    #[error("{what}; {mend}")]
    Conflict {
        /// What is wrong.
        what: String,
        /// How to mend it.
        mend: String,
    },
}

/// The settings in force: the defaults, the file, the variables.
///
/// # Errors
/// One variant for each way in which the texts can be wrong.
pub fn load(file: Option<&Path>, variables: impl IntoIterator<Item = (String, String)>) -> Result<Config, Error> {
    let mut table = table(file, variables)?;
    secret::read_files(&mut table)?;
    has_secrets(&table)?;
    let config: Config = table.try_into().map_err(|e: toml::de::Error| refused(&e))?;
    config.check()?;
    Ok(config)
}

/// A bot without its secret is named, with both ways to give it.
fn has_secrets(table: &Table) -> Result<(), Error> {
    let bots = table.get("telegram").and_then(|telegram| telegram.get("bots")).and_then(Value::as_table);
    for (name, bot) in bots.into_iter().flatten() {
        if bot.get("webhook_secret").is_none() {
            return Err(Error::Conflict {
                what: format!("[telegram.bots.{name}] has no webhook_secret"),
                mend: "give webhook_secret, or webhook_secret_file with the path of a file that holds it".to_owned(),
            });
        }
    }
    Ok(())
}

/// What a type said of a value, with the key that it stands at. Secrets are texts, which no type refuses, so that none
/// of them is repeated here.
fn refused(error: &toml::de::Error) -> Error {
    let said = error.to_string();
    let key = said.rsplit_once("in `").map_or("", |(_, key)| key.trim_end().trim_end_matches('`'));
    let mend = match error.message() {
        "invalid socket address syntax" => "; give an IP address and a port, such as 127.0.0.1:8080",
        _ => "",
    };
    Error::Value(format!("{key}: {}{mend}", error.message()))
}

/// A variable with single underscores that would name a key with double ones is refused; others are somebody else's.
fn meant(name: &str, defaults: &Table) -> Result<(), Error> {
    for (section, keys) in defaults.iter().filter_map(|(section, value)| Some((section, value.as_table()?))) {
        for key in keys.keys() {
            let right = format!("{PREFIX}{section}__{key}").to_uppercase();
            if name != right && name == right.replace("__", "_") {
                let (what, mend) = (format!("variable {name} sets nothing"), format!("write {right}"));
                return Err(Error::Conflict { what, mend });
            }
        }
    }
    Ok(())
}

/// As [`load`], before secrets are read from their files and values are checked: what `config print` shows.
///
/// # Errors
/// As [`load`].
pub fn table(file: Option<&Path>, variables: impl IntoIterator<Item = (String, String)>) -> Result<Table, Error> {
    let defaults: Table = DEFAULT.parse().expect("the compiled-in defaults are TOML: a test reads them");
    let mut merged = defaults.clone();
    if let Some(path) = file {
        let text = read(path)?;
        let overlay = parse(path, &text, &defaults)?;
        merge(&mut merged, overlay);
    }
    let mut variables: Vec<(String, String)> = variables.into_iter().collect();
    variables.sort();
    variables.iter().try_for_each(|(name, _)| meant(name, &defaults))?;
    variables.retain(|(name, _)| name.starts_with(PREFIX));
    for (name, text) in variables {
        let overlay = variable(&name, &text, &defaults)?;
        merge(&mut merged, overlay);
    }
    Ok(merged)
}

/// Reads a file of bounded size.
pub(super) fn read(path: &Path) -> Result<String, Error> {
    let fault = |problem: String| Error::File { path: path.to_owned(), problem };
    let size = std::fs::metadata(path).map_err(|e| fault(e.to_string()))?.len();
    if size > FILE_BYTES_MAX {
        return Err(fault(format!("it has {size} bytes, more than {FILE_BYTES_MAX}")));
    }
    std::fs::read_to_string(path).map_err(|e| fault(e.to_string()))
}

/// What may stand at a path.
enum Known<'a> {
    /// These keys.
    Section(&'a Table),
    /// Any name, then a bot's keys.
    Bots,
    /// A bot's keys.
    Bot,
    /// Any name, then a task's keys.
    Tasks,
    /// A task's keys.
    Task,
    /// Any label, with a text.
    Labels,
    /// Any dotted name, with a text.
    Properties,
    /// A value of this one's type.
    Leaf(&'a Value),
    /// A text that may be a secret.
    Text,
}

const BOT_KEYS: [&str; 2] = ["webhook_secret", "webhook_secret_file"];
const TASK_KEYS: [&str; 1] = ["actions"];

impl<'a> Known<'a> {
    fn below(&self, path: &[String], key: &str) -> Option<Known<'a>> {
        match self {
            // The path of a file that holds a secret.
            Known::Section(table) if secret::file_of(key).is_some_and(|secret| table.contains_key(secret)) => {
                Some(Known::Text)
            }
            Known::Section(table) => Some(match (path, key, table.get(key)?) {
                ([section], "bots", _) if section == "telegram" => Known::Bots,
                ([section], "properties", _) if section == "kafka" => Known::Properties,
                ([section], "tasks", _) if section == "dialogue" => Known::Tasks,
                (_, _, Value::Table(table)) => Known::Section(table),
                (_, _, value) => Known::Leaf(value),
            }),
            Known::Bots => Some(Known::Bot),
            Known::Bot => BOT_KEYS.contains(&key).then_some(Known::Text),
            Known::Tasks => Some(Known::Task),
            Known::Task => TASK_KEYS.contains(&key).then_some(Known::Labels),
            Known::Properties | Known::Labels => Some(Known::Text),
            Known::Leaf(_) | Known::Text => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        match self {
            Known::Section(table) => table.keys().map(String::as_str).collect(),
            Known::Bot => BOT_KEYS.to_vec(),
            Known::Task => TASK_KEYS.to_vec(),
            Known::Bots | Known::Tasks | Known::Labels | Known::Properties | Known::Leaf(_) | Known::Text => Vec::new(),
        }
    }

    fn unknown(&self, place: &str, path: &[String], key: &str) -> Error {
        let near = |known: &&str| strsim::jaro_winkler(known, key);
        let nearest = self.keys().into_iter().max_by(|a, b| near(a).total_cmp(&near(b)));
        let nearest = nearest.filter(|known| near(known) >= SIMILARITY_MIN).map(|known| dotted(path, known));
        Error::Unknown { place: place.to_owned(), key: dotted(path, key), nearest }
    }
}

fn dotted(path: &[String], key: &str) -> String {
    path.iter().map(String::as_str).chain([key]).collect::<Vec<_>>().join(".")
}

fn parse(path: &Path, text: &str, defaults: &Table) -> Result<Table, Error> {
    let place = path.display().to_string();
    let document = DeTable::parse(text).map_err(|e| {
        let line = text[..e.span().map_or(0, |s| s.start)].matches('\n').count() + 1;
        Error::Syntax { path: path.to_owned(), line, problem: e.message().to_owned() }
    })?;
    section(document.get_ref(), &Known::Section(defaults), &mut Vec::new(), &place, text)
}

fn section(
    table: &DeTable<'_>,
    known: &Known<'_>,
    path: &mut Vec<String>,
    place: &str,
    text: &str,
) -> Result<Table, Error> {
    let mut out = Table::new();
    for (key, value) in table {
        let key: &str = key.get_ref();
        let below = known.below(path, key).ok_or_else(|| known.unknown(place, path, key))?;
        path.push(key.to_owned());
        match (&below, value.get_ref()) {
            // TOML reads `sasl.password = …` as a table in a table.
            (Known::Text, DeValue::Table(nested)) if matches!(known, Known::Properties) => {
                for (rest, value) in section(nested, &Known::Properties, path, place, text)? {
                    out.insert(format!("{key}.{rest}"), value);
                }
            }
            (Known::Text | Known::Leaf(Value::String(_)), _) => {
                let value = as_text(value, text).ok_or_else(|| wrong(place, path, "a text"))?;
                out.insert(key.to_owned(), Value::String(value));
            }
            (Known::Leaf(default), _) => {
                let slice = &text[value.span()];
                let read = format!("v = {slice}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
                let read = read.filter(|v| same_kind(v, default)).ok_or_else(|| wrong(place, path, kind(default)))?;
                out.insert(key.to_owned(), read);
            }
            (_, DeValue::Table(nested)) => {
                out.insert(key.to_owned(), Value::Table(section(nested, &below, path, place, text)?));
            }
            (_, _) => return Err(wrong(place, path, "a table")),
        }
        path.pop();
    }
    Ok(out)
}

/// A text as it stands in the file; a number, a date or a truth value becomes the text that was written.
fn as_text(value: &Spanned<DeValue<'_>>, text: &str) -> Option<String> {
    match value.get_ref() {
        DeValue::String(value) => Some(value.to_string()),
        DeValue::Array(_) | DeValue::Table(_) => None,
        _ => Some(text[value.span()].to_owned()),
    }
}

fn same_kind(value: &Value, default: &Value) -> bool {
    let texts = |v: &Value| v.as_array().is_none_or(|a| a.iter().all(Value::is_str));
    value.same_type(default) && texts(value)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list of texts",
        Value::Table(_) => "a table",
    }
}

fn wrong(place: &str, path: &[String], wanted: &'static str) -> Error {
    Error::Type { place: place.to_owned(), key: path.join("."), wanted }
}

/// A list of texts, as in the file (`["a", "b"]`) or with commas between them (`a,b`).
fn texts(text: &str) -> Option<Value> {
    if text.trim_start().starts_with('[') {
        let list: Table = format!("list = {text}").parse().ok()?;
        return list.get("list").filter(|list| list.as_array().is_some_and(|l| l.iter().all(Value::is_str))).cloned();
    }
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    Some(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
}

/// The one setting that a variable names, as a table to lay over the others.
fn variable(name: &str, text: &str, defaults: &Table) -> Result<Table, Error> {
    let parts: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_lowercase).collect();
    let mut known = Known::Section(defaults);
    let mut path: Vec<String> = Vec::new();
    for part in &parts {
        let dots = matches!(known, Known::Properties);
        let part = if dots { property(part) } else { part.clone() };
        known = known.below(&path, &part).ok_or_else(|| known.unknown(name, &path, &part))?;
        path.push(part);
    }
    let value = match &known {
        Known::Text | Known::Leaf(Value::String(_)) => Some(Value::String(text.to_owned())),
        Known::Leaf(Value::Integer(_)) => text.trim().parse().ok().map(Value::Integer),
        Known::Leaf(Value::Float(_)) => text.trim().parse().ok().map(Value::Float),
        Known::Leaf(Value::Boolean(_)) => text.trim().parse().ok().map(Value::Boolean),
        Known::Leaf(Value::Array(_)) => texts(text),
        _ => None,
    };
    let wanted = if let Known::Leaf(default) = &known { kind(default) } else { "the name of one setting" };
    let value = value.ok_or_else(|| wrong(name, &path, wanted))?;
    let mut nested = value;
    for part in path.into_iter().rev() {
        nested = Value::Table(Table::from_iter([(part, nested)]));
    }
    let Value::Table(table) = nested else { return Err(wrong(name, &[], "the name of one setting")) };
    Ok(table)
}

/// `SASL_PASSWORD_FILE` names `sasl.password_file`.
fn property(part: &str) -> String {
    let (name, file) = part.strip_suffix("_file").map_or((part, ""), |name| (name, "_file"));
    name.replace('_', ".") + file
}

/// Lays `overlay` over `base`, key by key.
fn merge(base: &mut Table, overlay: Table) {
    for (key, value) in overlay {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests;
