//! Which stages a process runs, and the topics that follow from it.

use schemas::topic::{TURNS_ENRICHED, TURNS_RECEIVED, turns_after};

/// A contiguous run of the order of stages, with the topics that it reads and writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Positions in the order: from … to (exclusive).
    pub run: std::ops::Range<usize>,
    /// Whether it begins the order.
    pub first: bool,
    /// The topic that it reads.
    pub input: String,
    /// The topic that it writes.
    pub output: String,
}

/// Why stages do not make a chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No stage has this name.
    #[error("[processors] stages: there is no stage `{name}`; the stages are, in order: {order}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        order: String,
    },
    /// The stages do not stand beside each other in the order.
    #[error("[processors] stages: {asked} is no contiguous run of the order {order}: name neighbours, in order")]
    Gap {
        /// What was asked for.
        asked: String,
        /// What there is.
        order: String,
    },
}

/// The plan of a process that runs `stages`; none means all.
///
/// # Errors
/// A stage is unknown, or the stages are no contiguous run of the order.
pub fn plan<S: AsRef<str>>(order: &[&str], stages: &[S]) -> Result<Plan, PlanError> {
    let run = match stages.first() {
        None => 0..order.len(),
        Some(first) => {
            for stage in stages {
                if !order.contains(&stage.as_ref()) {
                    return Err(PlanError::Unknown { name: stage.as_ref().to_owned(), order: order.join(", ") });
                }
            }
            let start = order.iter().position(|name| *name == first.as_ref()).unwrap_or(order.len());
            start..start + stages.len()
        }
    };
    let asked: Vec<&str> = stages.iter().map(AsRef::as_ref).collect();
    if !asked.is_empty() && order.get(run.clone()) != Some(&asked[..]) {
        return Err(PlanError::Gap { asked: asked.join(", "), order: order.join(", ") });
    }
    let first = run.start == 0;
    let input = if first { TURNS_RECEIVED.to_owned() } else { turns_after(order[run.start - 1]) };
    let output = if run.end == order.len() { TURNS_ENRICHED.to_owned() } else { turns_after(order[run.end - 1]) };
    Ok(Plan { run, first, input, output })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: [&str; 3] = ["encode", "emotion", "memory"];

    #[test]
    fn a_cut_chain_meets_in_the_topics_between() {
        let whole = plan::<&str>(&ORDER, &[]).unwrap();
        assert_eq!((whole.input.as_str(), whole.output.as_str()), (TURNS_RECEIVED, TURNS_ENRICHED));
        assert_eq!(plan(&ORDER, &ORDER).unwrap(), whole);
        let (head, tail) = (plan(&ORDER, &["encode", "emotion"]).unwrap(), plan(&ORDER, &["memory"]).unwrap());
        assert_eq!(head.output, "undertone.turns.emotion.v1");
        assert_eq!(head.output, tail.input);
        assert_eq!(tail.output, TURNS_ENRICHED);
        assert!(head.first && !tail.first);
    }

    #[test]
    fn gaps_and_unknown_stages_are_refused_with_the_order() {
        let gap = plan(&ORDER, &["encode", "memory"]).unwrap_err().to_string();
        assert!(gap.contains("encode, emotion, memory"), "{gap}");
        assert!(matches!(plan(&ORDER, &["emotion", "encode"]), Err(PlanError::Gap { .. })));
        assert!(matches!(plan(&ORDER, &["dreams"]), Err(PlanError::Unknown { .. })));
    }
}
