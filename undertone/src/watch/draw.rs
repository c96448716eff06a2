//! The screen: who spoke and what, the emotions of the last turn as bars, the course of the mood as a curve.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, Paragraph};

use super::lines::plain;
use super::view::{Feeling, Seen, View};

/// Bars of the last turn's emotions.
const BARS: usize = 8;
/// The act that goes without saying.
const COMMON_ACT: &str = "inform";
/// Below this width there is only room for the words.
const WIDTH_FOR_PANELS: u16 = 70;
/// Colours of speakers, in turn.
const SPEAKERS: [Color; 6] =
    [Color::Cyan, Color::LightMagenta, Color::LightGreen, Color::LightYellow, Color::LightBlue, Color::LightRed];

/// Draws one frame.
pub fn draw(frame: &mut Frame<'_>, view: &View) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(3), Constraint::Length(1)]).areas(frame.area());
    let state = if view.connected { "● ".green() } else { "○ ".red() };
    let title = Line::from(vec![state, "Undertone ".bold(), plain(&view.title).into()]);
    frame.render_widget(Paragraph::new(title), head);
    let connection = if view.connection == "connected" { String::new() } else { format!(" · {}", view.connection) };
    frame.render_widget(Paragraph::new(Line::from(vec!["q".bold(), " quit".into(), connection.red()])), foot);
    if body.width < WIDTH_FOR_PANELS {
        turns(frame, body, view);
        return;
    }
    let [left, right] = Layout::horizontal([Constraint::Percentage(58), Constraint::Percentage(42)]).areas(body);
    let bars_height = BARS as u16 + 2;
    let [above, below] = Layout::vertical([Constraint::Length(bars_height), Constraint::Min(5)]).areas(right);
    turns(frame, left, view);
    emotions(frame, above, view);
    mood(frame, below, view);
}

fn turns(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let block = Block::bordered().title(" who said what ");
    let inner = block.inner(area);
    let mut lines: Vec<Line<'_>> = Vec::new();
    for turn in view.turns.iter().rev() {
        let block = turn_lines(turn, inner.width.into());
        if lines.len() + block.len() > inner.height.into() && !lines.is_empty() {
            break;
        }
        lines.splice(0..0, block);
    }
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// From what does not hang together to what does.
const LEVELS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];

fn turn_lines(turn: &Seen, width: usize) -> Vec<Line<'static>> {
    let speaker = plain(turn.speaker());
    let colour = SPEAKERS[speaker.bytes().map(usize::from).sum::<usize>() % SPEAKERS.len()];
    let mut head = vec![Span::styled(speaker, Style::new().fg(colour).bold())];
    if let Some(emotion) = &turn.emotion {
        for label in emotion.labels.iter().take(3) {
            head.push(Span::styled(format!("  {}", plain(label)), Style::new().fg(colour_of(label))));
        }
        head.push(format!("  {:+.2}", emotion.valence).fg(colour_of_valence(emotion.valence)));
        if let Some(turning) = emotion.mood.as_ref().and_then(|mood| mood.turning.as_deref()) {
            head.push(format!("  {}", plain(turning)).bold());
        }
    }
    if let Some(hanging) = turn.coherence {
        // The fuller the block, the better it goes on from what was said before.
        let level = (hanging.score.clamp(0.0, 1.0) * (LEVELS.len() - 1) as f64).round() as usize;
        head.push(format!("  {}", LEVELS[level]).dim());
        if hanging.shift {
            head.push("  new topic".bold());
        }
    }
    if let Some(meant) = &turn.dialogue {
        let wanted = meant.intents.iter().filter(|intent| !intent.out_of_scope).map(|intent| intent.name.as_str());
        for said in [meant.act.as_str()].into_iter().filter(|act| *act != COMMON_ACT).chain(wanted) {
            head.push(format!("  {}", plain(said)).dim());
        }
    }
    let mut lines = vec![Line::from(head)];
    lines.extend(wrap(&plain(&turn.text), width.saturating_sub(2)).into_iter().map(|l| Line::from(format!("  {l}"))));
    if let Some(locus) = turn.memory.as_ref().and_then(|memory| memory.locus.as_ref()) {
        let name = locus.name.as_deref().map_or_else(|| "a room".to_owned(), plain);
        lines.push(Line::from(format!("  in {name} {}.{}", locus.room, locus.place).dim()));
    }
    // For a person to look at: words that were found, nothing that is known of who said them.
    lines.extend(turn.flags.iter().map(|flag| Line::from(format!("  !{}", plain(flag)).red().bold())));
    lines
}

/// Breaks a text at spaces, or anywhere where a word is wider than the line.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(8);
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && wide(&line) + 1 + wide(word) > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        for c in word.chars() {
            if wide(&line) + wide(c.encode_utf8(&mut [0; 4])) > width {
                lines.push(std::mem::take(&mut line));
            }
            line.push(c);
        }
    }
    lines.push(line);
    lines
}

fn wide(text: &str) -> usize {
    Span::raw(text).width()
}

fn emotions(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let last = view.turns.iter().rev().find_map(|turn| turn.emotion.as_ref().map(|e| (turn, e)));
    let title = last.map_or_else(String::new, |(turn, _)| format!(" {} feels ", plain(turn.speaker())));
    let block = Block::bordered().title(title);
    let inner = block.inner(area);
    let lines = last.map_or_else(Vec::new, |(_, emotion)| bars(emotion, inner.width.into()));
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn bars(emotion: &Feeling, width: usize) -> Vec<Line<'static>> {
    const NAME: usize = 15;
    const FIGURE: usize = 5;
    let room = width.saturating_sub(NAME + FIGURE).max(1);
    let bar = |(label, p): (&str, f64)| {
        let eighths = (p.clamp(0.0, 1.0) * room as f64 * 8.0).round() as usize;
        let full = eighths / 8;
        let rest = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
        let drawn = format!("{}{rest}", "█".repeat(full));
        let gap = room.saturating_sub(wide(&drawn));
        Line::from(vec![
            format!("{:<NAME$}", plain(label)).into(),
            Span::styled(drawn, Style::new().fg(colour_of(label))),
            " ".repeat(gap).into(),
            format!(" {p:.2}").dim(),
        ])
    };
    emotion.top(BARS).into_iter().map(bar).collect()
}

fn mood(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let last = view.turns.iter().rev().find_map(|turn| turn.emotion.as_ref()?.mood.as_ref());
    let title = last.map_or_else(
        || " mood ".to_owned(),
        |m| format!(" mood {:+.2}  trend {:+.2}  volatility {:.2} ", m.valence, m.trend, m.volatility),
    );
    let moods: Vec<(f64, f64)> = view.moods.iter().enumerate().map(|(i, m)| (i as f64, m.1)).collect();
    let words: Vec<(f64, f64)> = view.moods.iter().enumerate().map(|(i, m)| (i as f64, m.0)).collect();
    let end = (view.moods.len().max(2) - 1) as f64;
    let zero = [(0.0, 0.0), (end, 0.0)];
    let colour = colour_of_valence(last.map_or(0.0, |m| m.valence));
    let curve =
        |data, style, graph| Dataset::default().marker(Marker::Braille).graph_type(graph).style(style).data(data);
    let data = vec![
        curve(&zero, Style::new().fg(Color::DarkGray), GraphType::Line),
        curve(&words, Style::new().fg(Color::Gray), GraphType::Scatter),
        curve(&moods, Style::new().fg(colour), GraphType::Line),
    ];
    let chart = Chart::new(data)
        .block(Block::bordered().title(title))
        .x_axis(Axis::default().bounds([0.0, end]))
        .y_axis(Axis::default().bounds([-1.0, 1.0]).labels(["−1", "0", "+1"]));
    frame.render_widget(chart, area);
}

fn colour_of_valence(valence: f64) -> Color {
    match valence {
        v if v > 0.15 => Color::Green,
        v if v < -0.15 => Color::Red,
        _ => Color::Gray,
    }
}

/// The colour of an emotion's Ekman class.
fn colour_of(label: &str) -> Color {
    use schemas::part::{EKMAN_OF, Ekman, GoEmotions};
    let class = GoEmotions::LABELS.iter().position(|l| *l == label).map(|i| Ekman::LABELS[EKMAN_OF[i]]);
    match class {
        Some("anger") => Color::Red,
        Some("disgust") => Color::Green,
        Some("fear") => Color::Magenta,
        Some("joy") => Color::Yellow,
        Some("sadness") => Color::Blue,
        Some("surprise") => Color::Cyan,
        _ => Color::Gray,
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::watch::feed::News;

    fn drawn(width: u16, height: u16, view: &View) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        terminal.backend().to_string()
    }

    fn view() -> View {
        let mut view = View::new("room".to_owned());
        view.apply(News::Connected { recovered: true });
        for (i, text) in ["what a lovely day", "and now it rains, oh no, all our plans are gone"].iter().enumerate() {
            let turn = serde_json::json!({
                "conversation": "room", "position": i + 1, "text": text, "sender": { "id": "ann", "name": "Ann" },
                "emotion": {
                    "probabilities": { "joy": 0.5, "sadness": 0.25 * i as f64 }, "labels": ["joy"],
                    "valence": 0.5 - i as f64, "intensity": 0.5,
                    "mood": { "valence": 0.5 - 0.5 * i as f64, "trend": -0.1, "volatility": 0.2, "turning": "relieved" },
                },
                "dialogue": { "act": if i == 0 { "inform" } else { "question" }, "intents": [
                    { "name": "weather", "out_of_scope": false }, { "name": "alarm", "out_of_scope": true },
                ] },
                "coherence": { "score": 0.5, "shift": i == 1 },
                "flags": if i == 1 { vec!["self_harm_words"] } else { vec![] },
                "memory": { "keep": true, "locus": {
                    "room": 1, "name": if i == 0 { Some("weather and plans") } else { None }, "place": i + 3, "x": 0, "y": 0,
                } },
            });
            view.apply(News::Turn(serde_json::from_value(turn).unwrap()));
        }
        view
    }

    #[test]
    fn screen_shows_speaker_words_bars_and_mood() {
        let screen = drawn(100, 24, &view());
        let said = [
            "Ann",
            "what a lovely day",
            "and now it rains",
            "joy",
            "relieved",
            "question",
            "weather",
            "new topic",
            "▅",
            "!self_harm_words",
            "in weather and plans 1.3",
            "in a room 1.4",
        ];
        for wanted in said.into_iter().chain(["█", "mood +0.00", "trend -0.10", "0.50"]) {
            assert!(screen.contains(wanted), "{wanted} is missing:\n{screen}");
        }
        assert!(!screen.contains("alarm") && !screen.contains("inform"), "{screen}");
    }

    #[test]
    fn any_size_of_terminal_is_drawn_on() {
        for (width, height) in [(1, 1), (10, 3), (40, 8), (69, 20), (70, 6), (250, 80)] {
            drawn(width, height, &view());
            drawn(width, height, &View::default());
        }
    }

    #[test]
    fn long_words_and_wide_characters_are_broken() {
        assert_eq!(wrap("aaaaaaaaaaaa b", 8), ["aaaaaaaa", "aaaa b"]);
        assert_eq!(wrap("日本語日本語", 8), ["日本語日", "本語"]);
    }
}
