//! Secrets among the settings: which keys are secret, reading them from files, and masking them.

use std::path::Path;

use toml::{Table, Value};

use super::load::{Error, read};

const FILE: &str = "_file";
const MASK: &str = "(set, not shown)";

/// Whether the value of this key is a secret.
fn is_secret(key: &str) -> bool {
    let key = key.to_lowercase();
    !key.ends_with(FILE)
        && ["password", "secret", "token", "api_key", "jaas", "oauthbearer.config", ".pem"]
            .iter()
            .any(|word| key.contains(word))
}

/// The secret whose file this key names.
pub(super) fn file_of(key: &str) -> Option<&str> {
    key.strip_suffix(FILE).filter(|secret| is_secret(secret))
}

/// The settings with every secret replaced by a remark.
pub fn masked(table: &Table) -> Table {
    let mask = |(key, value): (&String, &Value)| {
        let value = match value {
            Value::Table(nested) => Value::Table(masked(nested)),
            Value::String(text) if is_secret(key) && !text.is_empty() => Value::String(MASK.to_owned()),
            other => other.clone(),
        };
        (key.clone(), value)
    };
    table.iter().map(mask).collect()
}

/// Replaces every `SECRET_file = path` by `SECRET = content`, without the line end that editors add.
pub(super) fn read_files(table: &mut Table) -> Result<(), Error> {
    let files: Vec<String> = table.keys().filter(|key| file_of(key).is_some()).cloned().collect();
    for key in files {
        let name = file_of(&key).expect("filtered by it").to_owned();
        let Some(Value::String(path)) = table.remove(&key) else { continue };
        if path.is_empty() {
            continue;
        }
        if table.get(&name).is_some_and(|set| set.as_str() != Some("")) {
            let what = format!("both {name} and {key} are set");
            return Err(Error::Conflict { what, mend: "give one of them".to_owned() });
        }
        let text = read(Path::new(&path)).map_err(|error| match error {
            Error::File { path, problem } => Error::File { path, problem: format!("{problem} (it is named by {key})") },
            other => other,
        })?;
        table.insert(name, Value::String(text.trim_end_matches(['\r', '\n']).to_owned()));
    }
    for nested in table.iter_mut().filter_map(|(_, value)| value.as_table_mut()) {
        read_files(nested)?;
    }
    Ok(())
}
