//! News as plain lines, for pipes and logs: one a turn, without colour or cursor movement.

use super::feed::News;
use super::view::Seen;

/// One line, without its end. Control characters of the text become spaces: it stays one line, and no terminal obeys
/// what a stranger wrote.
pub fn line(news: &News) -> String {
    match news {
        News::Connected { recovered: true } => "· connected".to_owned(),
        News::Connected { recovered: false } => "· connected; some turns were missed meanwhile".to_owned(),
        News::Lost(why) => format!("· {}; trying again", plain(why)),
        News::Refused(why) => format!("· refused: {}", plain(why)),
        News::Turn(turn) => turn_line(turn),
    }
}

/// What was told of the connection, so that each change is told once, not at every try.
#[derive(Debug, Default)]
pub struct Told {
    lost: bool,
    refused: Option<String>,
}

impl Told {
    /// Whether this says something that the lines before it did not.
    pub fn is_new(&mut self, news: &News) -> bool {
        match news {
            News::Connected { .. } => *self = Told::default(),
            News::Turn(_) => self.lost = false,
            News::Lost(_) => return !std::mem::replace(&mut self.lost, true),
            News::Refused(why) if self.refused.as_ref() == Some(why) => return false,
            News::Refused(why) => self.refused = Some(why.clone()),
        }
        true
    }
}

fn turn_line(turn: &Seen) -> String {
    let position = turn.position.map_or_else(|| "–".to_owned(), |p| p.to_string());
    let mut line = format!("{} {position} {}: {}", plain(&turn.conversation), plain(turn.speaker()), plain(&turn.text));
    line += &turn.flags.iter().map(|flag| format!("  !{}", plain(flag))).collect::<String>();
    let Some(emotion) = &turn.emotion else { return line };
    let top: Vec<String> = emotion.top(3).iter().map(|(label, p)| format!("{label} {p:.2}")).collect();
    line += &format!("  [{}; valence {:+.2}", top.join(", "), emotion.valence);
    if let Some(mood) = &emotion.mood {
        line += &format!(", mood {:+.2}", mood.valence);
    }
    line + "]"
}

/// The text without control characters, and without those that turn the direction of what follows.
pub fn plain(text: &str) -> String {
    let unsafe_mark =
        |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}');
    text.chars().map(|c| if c.is_control() || unsafe_mark(c) { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(text: &str) -> Seen {
        let json = serde_json::json!({
            "conversation": "room", "position": 3, "text": text, "sender": { "id": "a", "name": "Ann", "bot": false },
            "emotion": {
                "probabilities": { "joy": 0.75, "anger": 0.01, "love": 0.25, "fear": 0.02 },
                "labels": ["joy"], "valence": 0.5, "intensity": 0.9,
                "mood": { "valence": 0.25, "intensity": 0.1, "trend": 0.0, "volatility": 0.0, "turns": 3 },
            },
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn turn_is_one_line_with_its_strongest_emotions() {
        let line = line(&News::Turn(Box::new(turn("hello\nthere"))));
        let wanted = "room 3 Ann: hello there  [joy 0.75, love 0.25, fear 0.02; valence +0.50, mood +0.25]";
        assert_eq!(line, wanted);
    }

    #[test]
    fn each_change_of_the_connection_is_told_once() {
        let lost = || News::Lost("no connection".to_owned());
        let refused = || News::Refused("no such conversation".to_owned());
        let connected = News::Connected { recovered: true };
        let mut told = Told::default();
        let new: Vec<bool> =
            [lost(), lost(), connected.clone(), lost(), refused(), lost(), refused(), connected, lost()]
                .iter()
                .map(|news| told.is_new(news))
                .collect();
        assert_eq!(new, [true, false, true, true, true, false, false, true, true]);
    }

    #[test]
    fn no_terminal_obeys_what_a_stranger_wrote() {
        let line = line(&News::Turn(Box::new(turn("\u{1b}[2J\u{202e}evil\u{7}"))));
        assert!(!line.contains(|c: char| c.is_control() || c == '\u{202e}'), "{line:?}");
    }
}
