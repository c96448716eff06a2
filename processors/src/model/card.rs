//! A model family on disk: its card, and its files checked against it.
//!
//! Promises: bytes that [`Family::read`] returns have the checksum that the card gives. Leaves out: what the bytes mean.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::stage::Failure;

const CARD: &str = "card.json";
/// Largest model file that is read, in bytes: a wrong path must not fill the memory.
const FILE_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// What a card says of a family.
#[derive(Debug, Clone, Deserialize)]
pub struct Card {
    /// Name of the model, as it stands in provenance.
    pub model: String,
    /// Version of the model, as it stands in provenance.
    pub version: String,
    /// Licence of the weights.
    pub licence: String,
    /// The files, by name.
    pub files: BTreeMap<String, Listed>,
}

/// What a card says of a file.
#[derive(Debug, Clone, Deserialize)]
pub struct Listed {
    /// SHA-256 of the whole file, in lower-case hexadecimal.
    pub sha256: String,
    /// Names of a graph's inputs or of what a reader feeds; empty for other files.
    #[serde(default)]
    pub inputs: Vec<String>,
    /// Names of a graph's outputs or of a file's tensors; empty for other files.
    #[serde(default)]
    pub outputs: Vec<String>,
}

/// A folder with a card and the files that it lists.
#[derive(Debug, Clone)]
pub struct Family {
    dir: PathBuf,
    card: Card,
}

impl Family {
    /// Reads the card of family `name` under `models`.
    ///
    /// # Errors
    /// [`Failure::Model`]: there is no card, or it is not one.
    pub fn open(models: &Path, name: &str) -> Result<Family, Failure> {
        let dir = models.join(name);
        let path = dir.join(CARD);
        let bytes = read(&path)?;
        let card = serde_json::from_slice(&bytes).map_err(|e| failure(&path, format!("not a model card: {e}")))?;
        Ok(Family { dir, card })
    }

    /// What the card says.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Where a file of this family lies.
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// What the card says of a file.
    ///
    /// # Errors
    /// [`Failure::Model`]: the card does not list it.
    pub fn listed(&self, file: &str) -> Result<&Listed, Failure> {
        let listed = self.card.files.get(file);
        listed.ok_or_else(|| failure(&self.dir.join(CARD), format!("does not list {file}")))
    }

    /// The bytes of a file, checked.
    ///
    /// # Errors
    /// [`Failure::Model`]: the card does not list it, it is missing, or its checksum is another.
    pub fn read(&self, file: &str) -> Result<Vec<u8>, Failure> {
        let listed = self.listed(file)?;
        let path = self.dir.join(file);
        let bytes = read(&path)?;
        let found = hex(&Sha256::digest(&bytes));
        if found != listed.sha256.to_ascii_lowercase() {
            let problem = format!("damaged: sha256 is {found}, its card says {}", listed.sha256);
            return Err(failure(&path, problem));
        }
        Ok(bytes)
    }

    /// A failure of one of this family's files.
    pub fn failure(&self, file: &str, problem: impl std::fmt::Display) -> Failure {
        failure(&self.dir.join(file), problem.to_string())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let missing = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => failure(path, "missing".to_owned()),
        _ => failure(path, format!("read: {e}")),
    };
    let size = fs::metadata(path).map_err(missing)?.len();
    if size > FILE_BYTES_MAX {
        return Err(failure(path, format!("{size} bytes is more than a model file may have ({FILE_BYTES_MAX})")));
    }
    fs::read(path).map_err(missing)
}

fn failure(path: &Path, problem: String) -> Failure {
    let mend = "restore it from the release (in a clone: `git checkout -- models`), \
                or set `[models] dir` to a folder that holds the models"
        .to_owned();
    Failure::Model { file: path.display().to_string(), problem, mend }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
