//! The list is held to what was promised of it, with a made-up word that no language has.

use super::*;

fn list() -> BlockList {
    BlockList::parse("grommel\nzarpe # a comment\nflozzy\nsnib\n*quonk*\nplim*\nkill yourself\nend my life")
        .expect("it is in bounds")
}

#[test]
fn listed_words_are_found_however_they_are_written() {
    for text in [
        "grommel",
        "GROMMEL",
        "the Grommel's",
        "grommels",
        "grommelling",
        "grommeled",
        "un-grommel",
        "grom-mel",
        "grom\u{ad}mel",
        "grom\u{200b}mel",
        "gro\u{301}mmel",
        "grömmèl",
        "gr0mmel",
        "gromme1",
        "gromme|",
        "g r o m m e l",
        "g.r.o.m.m.e.l",
        "g-r-o-m-m-e-l",
        "grooommmeeel",
        "\u{433}rommel \u{261}rommel",
        "ｇｒｏｍｍｅｌ",
        "𝔤𝔯𝔬𝔪𝔪𝔢𝔩",
        "ⓖⓡⓞⓜⓜⓔⓛ",
        "grоmmеl",
        "GRОММЕL",
        "g_r_o_m_m_e_l",
        "(grommel)",
        "\"grommel!\"",
        "gromrnel",
        "zarpe",
        "zarping",
        "zarped",
        "zarpy",
        "flozzies",
        "flozzier",
        "flozzy",
        "snibbing",
        "snibbed",
        "megaquonkish",
        "plimsomething",
        "kill yourself",
        "Kill\nyourself",
        "killing yourself",
        "k1ll y0urself",
        "end my life",
        "Ends my life.",
        "🅖🅡🅞🅜🅜🅔🅛",
    ] {
        assert!(list().finds(text), "{text}");
        assert_eq!(list().admit(text.to_owned()), None);
    }
}

#[test]
fn other_words_pass() {
    for text in [
        "gromwell",
        "The zarf of summer",
        "zarps",
        "kill your darlings",
        "my life's end",
        "snob",
        "A plum, a quince",
        "",
        "I am a b",
        "1914 to 1918",
        "groom melt",
    ] {
        assert!(!list().finds(text), "{text}");
    }
}

#[test]
fn a_word_is_found_wherever_the_text_was_cut_into_pieces() {
    let word = "grommel";
    for cut in 1..word.len() {
        let (a, b) = word.split_at(cut);
        let mut running = String::from("O ");
        running.push_str(a);
        running.push_str(b);
        assert!(list().finds(&running));
    }
}

#[test]
fn lists_that_cannot_work_are_refused() {
    assert_eq!(BlockList::parse("...").err(), Some(ListError::Empty("...".into())));
    assert_eq!(BlockList::parse(&"a".repeat(50)).err(), Some(ListError::Long("a".repeat(50))));
    assert!(matches!(BlockList::parse(&"a\n".repeat(ENTRIES_MAX + 1)), Err(ListError::Many(_))));
}
