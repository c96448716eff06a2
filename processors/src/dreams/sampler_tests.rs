//! Dreams from a decoder of letters that wants to say a listed word.

use super::*;

/// Says letters of its wish more likely than others, whatever came before.
struct Wishful {
    pieces: usize,
    wanted: Vec<u32>,
    reads: usize,
}

impl Decoder for Wishful {
    type State = usize;

    fn begin(&self) -> usize {
        0
    }

    fn read(&mut self, state: &mut usize, piece: u32) -> Result<Vec<f32>, Failure> {
        self.reads += 1;
        *state = if piece >= FIRST_TEXT { *state + 1 } else { 0 };
        let mut logits = vec![0.0; self.pieces];
        logits[self.wanted[*state % self.wanted.len()] as usize] = 7.0;
        Ok(logits)
    }
}

/// 64 steering pieces and the bytes.
fn letters() -> Pieces {
    let name = |b: u8| {
        let own = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let other = (0..b).filter(|b| !own(*b)).count();
        if own(b) {
            char::from(b)
        } else {
            char::from_u32(0x100 + u32::try_from(other).expect("few")).expect("a letter")
        }
    };
    let steering = (0..FIRST_TEXT).map(|i| (format!("<s {i}>"), i));
    let vocab: serde_json::Map<String, serde_json::Value> = steering
        .chain((0..=255u8).map(|b| (name(b).to_string(), FIRST_TEXT + u32::from(b))))
        .map(|(k, v)| (k, v.into()))
        .collect();
    let file = serde_json::json!({"model": {"vocab": vocab, "merges": [["s", "n"]]}});
    // The merge names a piece that does not exist, and is refused.
    assert!(Pieces::parse(file.to_string().as_bytes()).is_err());
    let file = serde_json::json!({"model": {"vocab": vocab, "merges": []}});
    Pieces::parse(file.to_string().as_bytes()).expect("it is whole")
}

fn wishful(pieces: &Pieces, text: &str) -> Wishful {
    let mut wanted = pieces.encode(text);
    wanted.push(LINE);
    Wishful { pieces: pieces.count(), wanted, reads: 0 }
}

#[test]
fn the_same_seed_gives_the_same_dream_and_another_another() {
    let (pieces, list, bounds) = (letters(), BlockList::default(), Bounds::default());
    let of = |seed| {
        dream(&mut wishful(&pieces, "A plum, a quince"), &pieces, &list, &Wishes::default(), &bounds, seed)
            .expect("it runs")
    };
    let dreams: Vec<_> = (0..20).map(of).collect();
    assert_eq!(dreams, (0..20).map(of).collect::<Vec<_>>());
    assert!(dreams.iter().flatten().count() > 10);
    assert!(dreams.windows(2).any(|pair| pair[0] != pair[1]));
}

#[test]
fn a_listed_word_never_comes_out_and_work_is_bounded() {
    let (pieces, bounds) = (letters(), Bounds::default());
    let list = BlockList::parse("snib").expect("a list");
    for seed in 0..200 {
        let mut decoder = wishful(&pieces, "O snib");
        let said = dream(&mut decoder, &pieces, &list, &Wishes::default(), &bounds, seed).expect("it runs");
        assert!(decoder.reads <= 1 + bounds.lines * bounds.tries * (bounds.pieces + 1));
        assert!(said.iter().all(|a| !list.finds(a.as_str()) && a.as_str().lines().count() <= bounds.lines), "{said:?}");
    }
    let free = dream(&mut wishful(&pieces, "O snib"), &pieces, &BlockList::default(), &Wishes::default(), &bounds, 1)
        .expect("it runs");
    assert!(free.is_some_and(|a| list.finds(a.as_str())), "without the list the decoder says it");
}

#[test]
fn words_to_be_about_are_said_more_often_and_once() {
    let (pieces, list, bounds) = (letters(), BlockList::default(), Bounds::default());
    let said = |wishes: &Wishes| {
        let of =
            |seed| dream(&mut wishful(&pieces, "O cherry"), &pieces, &list, wishes, &bounds, seed).expect("it runs");
        let dreams = (0..40).flat_map(of);
        dreams.map(|dream| dream.as_str().to_lowercase().matches("plum").count()).collect::<Vec<usize>>()
    };
    let about = said(&Wishes { about: vec!["plum".to_owned()], ..Wishes::default() });
    assert!(about.iter().filter(|count| **count > 0).count() > 20, "{about:?}");
    assert!(about.iter().all(|count| *count <= 1), "{about:?}");
    assert_eq!(said(&Wishes::default()).iter().sum::<usize>(), 0);
}
