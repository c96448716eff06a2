//! Where the models and the ONNX Runtime library are, so that the program runs from any folder.
//!
//! What the settings name counts alone. Otherwise the places are, in order: beside the program, where a package would
//! install them, and the source tree that the program was built from.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};

/// A file of the models, by which their folder is known.
const MODELS_MARK: &str = "encoder/card.json";
/// The source tree that this program was built from; gone on other machines.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What was not found, and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum NotFound {
    /// The folder of the models.
    #[error("no models in {}; point [models] dir at the folder that holds encoder/, static/, emotion/ and dialogue/", list(.0))]
    Models(Vec<PathBuf>),
    /// The ONNX Runtime library.
    #[error(
        "no ONNX Runtime library at {}; fetch it with `python3 models/fetch.py`, or point [models] onnxruntime at it",
        list(.0)
    )]
    OnnxRuntime(Vec<PathBuf>),
}

fn list(places: &[PathBuf]) -> String {
    places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", nor ")
}

/// The folder of the models; `configured` counts alone unless it is empty.
///
/// # Errors
/// [`NotFound::Models`] with the places that were looked at.
pub fn models(configured: &Path) -> Result<PathBuf, NotFound> {
    let places = places(configured, &["models", "../../models", "../share/undertone/models"], "models");
    places.iter().find(|place| place.join(MODELS_MARK).is_file()).cloned().ok_or(NotFound::Models(places))
}

/// The ONNX Runtime library; `configured` counts alone unless it is empty.
///
/// # Errors
/// [`NotFound::OnnxRuntime`] with the places that were looked at.
pub fn onnxruntime(configured: &Path) -> Result<PathBuf, NotFound> {
    let name = format!("{DLL_PREFIX}onnxruntime{DLL_SUFFIX}");
    let cached = format!(".cache/onnxruntime/{name}");
    let beside =
        [name.clone(), format!("../../{cached}"), format!("../lib/{name}"), format!("../lib/undertone/{name}")];
    let beside: Vec<&str> = beside.iter().map(String::as_str).collect();
    let places = places(configured, &beside, &cached);
    places.iter().find(|place| place.is_file()).cloned().ok_or(NotFound::OnnxRuntime(places))
}

fn places(configured: &Path, beside: &[&str], in_source: &str) -> Vec<PathBuf> {
    if !configured.as_os_str().is_empty() {
        return vec![configured.to_owned()];
    }
    // Through symbolic links: the link may stand in /usr/local/bin, and what belongs to the program does not.
    let program = std::env::current_exe().and_then(|path| path.canonicalize()).ok();
    let folder = program.as_deref().and_then(Path::parent);
    let beside = folder.into_iter().flat_map(|folder| beside.iter().map(|place| tidy(&folder.join(place))));
    let mut all: Vec<PathBuf> = beside.chain([tidy(&Path::new(SOURCE).join(in_source))]).collect();
    let mut seen = std::collections::HashSet::new();
    all.retain(|place| seen.insert(place.clone()));
    all
}

/// The path without `..`, which is right because what it starts from has no symbolic links left.
fn tidy(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::new();
    for part in path.components() {
        if part != std::path::Component::ParentDir {
            tidy.push(part);
        } else {
            tidy.pop();
        }
    }
    tidy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_place_counts_alone_and_the_error_says_the_mend() {
        let message = models(Path::new("/nowhere/models")).unwrap_err().to_string();
        assert!(message.contains("/nowhere/models") && message.contains("[models] dir"), "{message}");
        assert!(!message.contains("nor"), "{message}");
        let message = onnxruntime(Path::new("/nowhere/lib.so")).unwrap_err().to_string();
        assert!(message.contains("python3 models/fetch.py") && message.contains("[models] onnxruntime"), "{message}");
    }

    #[test]
    fn models_of_the_source_tree_are_found() {
        assert!(models(Path::new("")).unwrap().join(MODELS_MARK).is_file());
    }
}
