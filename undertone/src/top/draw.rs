//! The screen: a panel for each process, its figures on the left, its lag by partition as bars on the right.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph};

use super::lines;
use super::view::{Known, Process, View};
use crate::watch::lines::plain;

/// Below this width there is only room for the figures.
const WIDTH_FOR_LAG: u16 = 80;
/// Lag in seconds that fills a bar, and from which on it is red: the default bound of the fast tier.
const LAG_FULL_SECONDS: f64 = 10.0;

/// Draws one frame.
pub fn draw(frame: &mut Frame<'_>, view: &View) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(1), Constraint::Length(1)]).areas(frame.area());
    // Folded, because the standard library's sum of nothing is a negative zero.
    let total: f64 =
        view.processes.iter().filter(|process| process.state != "down").map(enriched).fold(0.0, |sum, rate| sum + rate);
    let title =
        vec!["Undertone ".bold(), format!("{} processes · {total:.1} turns/s enriched", view.processes.len()).into()];
    frame.render_widget(Paragraph::new(Line::from(title)), head);
    frame.render_widget(Paragraph::new(Line::from(vec!["q".bold(), " quit".into()])), foot);
    let areas = Layout::vertical(view.processes.iter().map(|_| Constraint::Fill(1))).split(body);
    for (process, area) in view.processes.iter().zip(areas.iter()) {
        panel(frame, *area, process);
    }
}

fn enriched(process: &Process) -> f64 {
    let rates = process.known.iter().flat_map(|known| &known.turns_per_s);
    rates.filter(|rate| rate.step == "processors").fold(0.0, |sum, rate| sum + rate.per_s)
}

fn panel(frame: &mut Frame<'_>, area: Rect, process: &Process) {
    let colour = match process.state.as_str() {
        "ready" => Color::Green,
        "asking" => Color::Gray,
        "unready" => Color::Yellow,
        _ => Color::Red,
    };
    let mut text = lines::lines(process);
    let title = text.remove(0);
    let block = Block::bordered().title(vec![" ● ".fg(colour), plain(&title).bold(), " ".into()]);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let wide = inner.width >= WIDTH_FOR_LAG && process.state != "down";
    let [left, right] = match wide {
        true => Layout::horizontal([Constraint::Percentage(55), Constraint::Percentage(45)]).areas(inner),
        false => [inner, Rect::ZERO],
    };
    let styled = text.into_iter().filter(|line| !wide || !line.starts_with("  lag")).map(|line| {
        let style = if line.starts_with("  !") { Style::new().fg(Color::Red) } else { style_of(&line) };
        Line::styled(line, style)
    });
    frame.render_widget(Paragraph::new(styled.collect::<Vec<_>>()), left);
    if let Some(known) = &process.known
        && wide
    {
        frame.render_widget(Paragraph::new(bars(known, right.width.into(), right.height.into())), right);
    }
}

fn style_of(line: &str) -> Style {
    if line.contains("tier fast") { Style::new().fg(Color::Yellow) } else { Style::new() }
}

/// The lag of each partition as a bar; the longest first where there is no room for all.
fn bars(known: &Known, width: usize, height: usize) -> Vec<Line<'static>> {
    const WORDS: usize = 36;
    let mut lags: Vec<(String, i32, i64, f64)> = Vec::new();
    for lag in &known.lag {
        lags.extend(lag.partitions.iter().map(|p| (plain(&lag.role), p.partition, p.messages, p.seconds)));
    }
    if lags.len() > height {
        lags.sort_by(|a, b| b.3.total_cmp(&a.3));
        lags.truncate(height);
    }
    let room = width.saturating_sub(WORDS);
    let bar = |(role, partition, messages, seconds): (String, i32, i64, f64)| {
        let share = (seconds / LAG_FULL_SECONDS).clamp(0.0, 1.0);
        let filled = (share * room as f64).round() as usize;
        let colour = if share >= 1.0 { Color::Red } else { Color::Cyan };
        Line::from(vec![
            format!("{role:<11}{partition:>4} {messages:>9} {seconds:>7.1} s ").into(),
            Span::styled("█".repeat(filled), Style::new().fg(colour)),
        ])
    };
    lags.into_iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::top::view::tests::scrape;

    fn drawn(width: u16, height: u16, view: &View) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        terminal.backend().to_string()
    }

    fn view() -> View {
        let mut view = View::new(&["http://one".to_owned(), "http://other".to_owned()]);
        let begun = Instant::now();
        view.apply(vec![Ok(scrape(begun, 1, 0)), Err("connection refused".to_owned())]);
        view.apply(vec![Ok(scrape(begun + Duration::from_secs(1), 1, 250)), Err("connection refused".to_owned())]);
        view
    }

    #[test]
    fn screen_shows_what_runs_how_fast_how_far_behind_and_what_is_dead() {
        let screen = drawn(110, 24, &view());
        for wanted in [
            "2 processes · 250.0 turns/s",
            "http://one ready",
            "p99     9.9 ms",
            "tier fast",
            "12     3.5 s ██",
            "memory 100 MiB",
            "http://other down",
            "connection refused",
        ] {
            assert!(screen.contains(wanted), "{wanted} is missing:\n{screen}");
        }
    }

    #[test]
    fn any_size_of_terminal_is_drawn_on() {
        for (width, height) in [(1, 1), (10, 3), (40, 8), (82, 6), (250, 80)] {
            drawn(width, height, &view());
            drawn(width, height, &View::new(&[]));
        }
    }
}
