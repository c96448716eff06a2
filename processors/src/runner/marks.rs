//! What the process itself has noted beside the watermarks of a partition: found again, it tells of no crash. Pure.

use store::context::Attempt;

/// The marks that may stand in the store of one partition.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// Those that the store was asked to keep, since the last one that it surely kept; the rest may stand or not. The
    /// store is asked for the same ones again and again while it is away, so there are few.
    standing: Vec<Attempt>,
    /// What would stand if the partition had been left in order.
    meant: Option<Attempt>,
}

impl Marks {
    /// The process has left the partition, or taken it, without dying of what is in work.
    pub(super) fn mean(&mut self, attempt: Option<Attempt>) {
        self.meant = attempt;
    }

    /// The store is about to be asked.
    pub(super) fn ask(&mut self, attempt: Option<Attempt>) {
        self.standing.extend(attempt.filter(|attempt| !self.standing.contains(attempt)));
    }

    /// The store has kept it, and nothing older.
    pub(super) fn kept(&mut self, attempt: Option<Attempt>) {
        self.standing = Vec::from_iter(attempt);
    }

    /// What a mark that was found says: one that another process left, what that one says; one of our own, what we meant.
    pub(super) fn read(&self, found: Option<Attempt>) -> Option<Attempt> {
        if found.is_some_and(|found| self.standing.contains(&found)) { self.meant } else { found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(offset: i64, count: u32) -> Option<Attempt> {
        Some(Attempt { offset, count })
    }

    #[test]
    fn a_mark_of_another_process_is_a_crash_and_one_of_ours_is_none() {
        let mut marks = Marks::default();
        assert_eq!(marks.read(mark(7, 0)), mark(7, 0));
        marks.ask(mark(7, 0));
        marks.kept(mark(7, 0));
        assert_eq!(marks.read(mark(7, 0)), None);
        assert_eq!(marks.read(mark(8, 0)), mark(8, 0));
        assert_eq!(marks.read(None), None);
    }

    #[test]
    fn a_store_that_did_not_answer_may_have_the_mark_or_the_one_before() {
        let mut marks = Marks::default();
        marks.ask(mark(7, 0));
        marks.kept(mark(7, 0));
        marks.ask(None);
        marks.ask(mark(9, 0));
        marks.ask(mark(9, 0));
        assert_eq!((marks.read(mark(7, 0)), marks.read(mark(9, 0))), (None, None));
        assert_eq!(marks.standing.len(), 2);
        // It answers again: what was before is gone, and would be of somebody else.
        marks.kept(mark(9, 0));
        assert_eq!(marks.read(mark(7, 0)), mark(7, 0));
    }

    #[test]
    fn a_turn_that_was_alone_in_work_when_the_store_went_away_keeps_its_count() {
        let mut marks = Marks::default();
        marks.ask(mark(7, 2));
        marks.mean(mark(7, 1));
        assert_eq!(marks.read(mark(7, 2)), mark(7, 1));
    }
}
