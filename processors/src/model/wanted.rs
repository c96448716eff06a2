//! What an operator wants told of dialogues: `[dialogue]` of the configuration, put in force.
//!
//! Promises: what is not known is refused with the names that are; nothing is in force of a choice that is refused.
//! Leaves out: reading the configuration (the program).

use std::sync::Arc;

use super::Models;
use super::next::{ACTIONS_MAX, Actions, Tasks};
use super::sets::{self, DEFAULT, ExamplesError};
use crate::stage::Failure;

/// What is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Sets of intents: names of shipped ones, or files of examples.
    pub intents: Vec<String>,
    /// Domains whose values are looked for.
    pub slots: Vec<String>,
    /// Tasks with the labels and templates of their actions.
    pub tasks: Tasks,
}

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted { intents: vec![DEFAULT.to_owned()], slots: Vec::new(), tasks: Tasks::new() }
    }
}

/// What of it cannot be.
#[derive(Debug, thiserror::Error)]
pub enum WantedError {
    /// The sets of intents.
    #[error(transparent)]
    Intents(#[from] ExamplesError),
    /// A domain that there is not.
    #[error("there is no domain \"{0}\" in [dialogue] slots: name some of {1}, or none")]
    Domain(String, String),
    /// A task without actions, or too many of them.
    #[error("{0} in [dialogue.tasks]: a task has at least one action, and all together have at most {ACTIONS_MAX}")]
    Tasks(String),
    /// A fault of ours.
    #[error(transparent)]
    Model(#[from] Failure),
}

impl Wanted {
    /// Puts it in force.
    ///
    /// # Errors
    /// A name or a file that cannot be used, or a fault of ours.
    pub fn configure(&self, models: &Models) -> Result<(), WantedError> {
        self.check(models)?;
        sets::configure(models, &self.intents)?;
        Ok(self.tell(models)?)
    }

    /// As [`Wanted::configure`], and follows what changes in the files.
    ///
    /// # Errors
    /// [`Failure::Model`] that names what cannot be used.
    pub fn follow(&self, models: &Arc<Models>) -> Result<(), Failure> {
        self.check(models).map_err(|error| Failure::Model {
            file: "of [dialogue]".to_owned(),
            problem: error.to_string(),
            mend: "mend the configuration".to_owned(),
        })?;
        sets::follow(models, &self.intents)?;
        self.tell(models)
    }

    fn tell(&self, models: &Models) -> Result<(), Failure> {
        models.dialogue().look_for(self.slots.clone());
        let actions = if self.tasks.is_empty() { None } else { Some(Arc::new(Actions::of(models, &self.tasks)?)) };
        models.dialogue().choose_from(actions);
        Ok(())
    }

    fn check(&self, models: &Models) -> Result<(), WantedError> {
        if let Some((task, _)) = self.tasks.iter().find(|(_, actions)| actions.is_empty()) {
            return Err(WantedError::Tasks(format!("\"{task}\" has no action")));
        }
        let count: usize = self.tasks.values().map(|actions| actions.len()).sum();
        if count > ACTIONS_MAX {
            return Err(WantedError::Tasks(format!("{count} actions are too many")));
        }
        let known = models.dialogue().tagger().domains();
        let unknown = self.slots.iter().find(|name| !known.contains(&name.as_str()));
        unknown.map_or(Ok(()), |name| Err(WantedError::Domain(name.clone(), known.join(", "))))
    }
}
