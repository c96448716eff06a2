//! What is on the screen: the last turns, the last emotions, the course of the mood. Plain data, bounded.

use std::collections::{BTreeMap, VecDeque};

use serde::Deserialize;

use super::feed::News;

/// Turns kept for the screen.
const TURNS_MAX: usize = 200;
/// Points of the mood kept for its curve.
const MOODS_MAX: usize = 240;

/// A turn as the stream sends it, as far as it is shown. Unknown fields are those of a later release.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Seen {
    /// Its conversation.
    pub conversation: String,
    /// The words.
    pub text: String,
    /// Dense number within the conversation.
    #[serde(default)]
    pub position: Option<i64>,
    /// Who said it.
    #[serde(default)]
    pub sender: Option<Speaker>,
    /// What the words express.
    #[serde(default)]
    pub emotion: Option<Feeling>,
    /// What the words are meant to do.
    #[serde(default)]
    pub dialogue: Option<Meant>,
    /// How it hangs together with what went before.
    #[serde(default)]
    pub coherence: Option<Hanging>,
    /// What a person should look at.
    #[serde(default)]
    pub flags: Vec<String>,
    /// Where it is remembered.
    #[serde(default)]
    pub memory: Option<Kept>,
}

/// Who speaks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Speaker {
    /// The source's id.
    pub id: String,
    /// A name to show.
    #[serde(default)]
    pub name: Option<String>,
}

/// The part of stage `emotion`, as far as it is shown.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Feeling {
    /// Probability of each emotion.
    pub probabilities: BTreeMap<String, f64>,
    /// Emotions over their thresholds, the most probable first.
    #[serde(default)]
    pub labels: Vec<String>,
    /// −1 to 1.
    pub valence: f64,
    /// 0 to 1.
    pub intensity: f64,
    /// After this turn.
    #[serde(default)]
    pub mood: Option<Mood>,
}

/// The part of stage `dialogue`, as far as it is shown.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Meant {
    /// Such as question.
    pub act: String,
    /// One a set.
    #[serde(default)]
    pub intents: Vec<Wanted>,
}

/// The part of stage `coherence`, as far as it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Hanging {
    /// 0 to 1.
    pub score: f64,
    /// Whether it begins another topic.
    pub shift: bool,
}

/// The part of stage `memory`, as far as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Kept {
    /// Nothing where it is not kept.
    #[serde(default)]
    pub locus: Option<Place>,
}

/// A place in the palace.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Place {
    /// Number of the room.
    pub room: i64,
    /// What the room is called; nothing where that is not shown.
    #[serde(default)]
    pub name: Option<String>,
    /// Number of the place in it.
    pub place: i64,
}

/// What is wanted, among the intents of a set.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Wanted {
    /// The intent.
    pub name: String,
    /// Whether none of the set's is meant.
    pub out_of_scope: bool,
}

/// The mood of the conversation.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Mood {
    /// −1 to 1.
    pub valence: f64,
    /// −2 to 2.
    pub trend: f64,
    /// 0 to 1.
    pub volatility: f64,
    /// What turned with the turn.
    #[serde(default)]
    pub turning: Option<String>,
}

impl Seen {
    /// The name to show; the id where there is none.
    pub fn speaker(&self) -> &str {
        self.sender.as_ref().map_or("somebody", |s| s.name.as_deref().unwrap_or(&s.id))
    }
}

impl Feeling {
    /// The most probable emotions, the most probable first.
    pub fn top(&self, count: usize) -> Vec<(&str, f64)> {
        let mut all: Vec<(&str, f64)> = self.probabilities.iter().map(|(label, p)| (label.as_str(), *p)).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all.truncate(count);
        all
    }
}

/// The state of the screen.
#[derive(Debug, Default)]
pub struct View {
    /// What is followed.
    pub title: String,
    /// Whether the stream is there, or why not.
    pub connection: String,
    /// Whether the stream is there.
    pub connected: bool,
    /// The last turns, oldest first.
    pub turns: VecDeque<Seen>,
    /// Valence of the words and of the mood after each of the last turns, oldest first.
    pub moods: VecDeque<(f64, f64)>,
}

impl View {
    /// An empty screen.
    pub fn new(title: String) -> View {
        View { title, connection: "connecting".to_owned(), ..View::default() }
    }

    /// Takes news in.
    pub fn apply(&mut self, news: News) {
        match news {
            News::Connected { recovered } => {
                self.connected = true;
                let gap = "connected; some turns were missed while the connection was lost";
                self.connection = if recovered { "connected" } else { gap }.to_owned();
            }
            News::Lost(why) => {
                self.connected = false;
                self.connection = format!("{why}; trying again");
            }
            News::Refused(why) => self.connection = why,
            News::Turn(turn) => self.take(*turn),
        }
    }

    fn take(&mut self, turn: Seen) {
        if let Some(emotion) = &turn.emotion {
            let mood = emotion.mood.as_ref().map_or(emotion.valence, |m| m.valence);
            push(&mut self.moods, (emotion.valence, mood), MOODS_MAX);
        }
        push(&mut self.turns, turn, TURNS_MAX);
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T, max: usize) {
    if queue.len() == max {
        queue.pop_front();
    }
    queue.push_back(item);
}
