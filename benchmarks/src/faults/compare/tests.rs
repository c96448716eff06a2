//! Each kind of difference is found, and a clean run is clean.

use std::sync::Arc;

use schemas::Turn;

use super::*;

const ROOM: usize = 1;
const TURNS: u64 = 6;

fn chain(codec: &Arc<Codec>) -> Chain {
    Chain::new(Vec::new(), true, Arc::clone(codec))
}

/// A clean run: one conversation, one turn said twice.
fn clean(codec: &Arc<Codec>) -> Evidence {
    let mut evidence = Evidence::default();
    let chain = chain(codec);
    let room = Frame::room(ROOM);
    let mut conversation = chain.open(&room, HashMap::new()).unwrap();
    let numbers = (0..TURNS).chain([2]);
    for (offset, number) in (0..).zip(numbers) {
        let frame = Frame { conversation: ROOM, number };
        let mut turn = Turn::message("websocket", &room, "ann", &frame.id(), "hello", 1000 + number as i64);
        let place = Acknowledged { partition: 3, offset };
        evidence.said.acknowledged.entry(frame).or_default().push(place);
        evidence.received.push(Placed { place, turn: turn.clone(), value: codec.encode(&turn).unwrap() });
        turn.tier = Some(Tier::Fast);
        let stamp = Stamp { partition: 3, offset };
        if chain.fold(&mut conversation, &mut turn, stamp).unwrap() == Folded::Enriched {
            let value = codec.encode(&turn).unwrap();
            let row = Row {
                conversation: room.clone(),
                position: turn.position.unwrap(),
                id: turn.id,
                at: turn.at,
                person: turn.person(),
                value: value.clone(),
            };
            evidence.history.entry(room.clone()).or_default().push(row);
            evidence.enriched.push(Placed { place, turn, value });
        }
    }
    for write in chain.close(conversation).unwrap() {
        let record = Record { stage: write.stage, current: write.current, previous: None };
        evidence.contexts.entry(room.clone()).or_default().push(record);
    }
    evidence
}

fn findings(change: impl FnOnce(&mut Evidence)) -> Findings {
    let codec = Arc::new(Codec::embedded());
    let mut evidence = clean(&codec);
    change(&mut evidence);
    compare(&evidence, &chain(&codec), &codec).unwrap()
}

#[test]
fn a_clean_run_is_clean() {
    let found = findings(|_| {});
    assert!(found.is_clean(), "{:?}", found.told);
}

#[test]
fn what_was_acknowledged_and_is_not_in_the_log_is_lost() {
    let frame = Frame { conversation: ROOM, number: TURNS };
    let place = Acknowledged { partition: 3, offset: 99 };
    assert_eq!(findings(|e| drop(e.said.acknowledged.insert(frame, vec![place]))).lost, 1);
}

#[test]
fn what_is_missing_behind_the_log_is_lost_wherever_it_is_missing() {
    let last = TURNS as usize - 1;
    // The history has it still, and nothing else does.
    let found = findings(|e| drop(e.enriched.remove(last)));
    assert_eq!((found.lost, found.doubled), (1, 1));
    assert_eq!(findings(|e| drop(e.history.get_mut(&Frame::room(ROOM)).unwrap().pop())).lost, 1);
    assert_eq!(findings(|e| e.rejects = 1).lost, 1);
}

#[test]
fn what_is_enriched_twice_is_doubled_also_under_another_position() {
    let twice = |position: i64| {
        findings(|e| {
            let mut again = e.enriched[2].clone();
            again.turn.position = Some(position);
            e.enriched.push(again);
        })
    };
    assert_eq!((twice(3).doubled, twice(TURNS as i64 + 1).doubled), (1, 1));
}

#[test]
fn turns_that_changed_places_are_out_of_order() {
    assert!(findings(|e| e.enriched.swap(1, 2)).out_of_order > 0);
    assert!(findings(|e| e.enriched[3].turn.position = Some(9)).out_of_order > 0);
    let swapped = |e: &mut Evidence| {
        let (a, b) = (e.received[1].turn.clone(), e.received[2].turn.clone());
        (e.received[1].turn, e.received[2].turn) = (b, a);
    };
    assert!(findings(swapped).out_of_order > 0);
}

#[test]
fn a_context_or_a_turn_that_differs_by_one_byte_differs() {
    let slice = |e: &mut Evidence| e.contexts.get_mut(&Frame::room(ROOM)).unwrap()[0].current.bytes.push(0);
    assert_eq!(findings(slice).contexts_differing, 1);
    assert_eq!(findings(|e| e.contexts.clear()).contexts_differing, 1);
    let turn = |e: &mut Evidence| {
        *e.enriched[4].value.last_mut().unwrap() ^= 1;
        let bytes = e.enriched[4].value.clone();
        e.history.get_mut(&Frame::room(ROOM)).unwrap()[4].value = bytes;
    };
    assert_eq!(findings(turn).turns_differing, 1);
}
