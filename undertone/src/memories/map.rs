//! A palace drawn: its rooms where they stand, each as large as what it holds, with a light for each memory.

use std::fmt::Write as _;

use api::memories::{Palace, Room};

/// A room's piece of the map, in pixels.
const CELL: (f64, f64) = (220.0, 190.0);
/// What lies around the map.
const MARGIN: f64 = 40.0;
const TITLE: f64 = 70.0;
/// Side of the smallest and of the largest room.
const SIDE: (f64, f64) = (64.0, 132.0);
/// Names stand in the middle under their rooms, and paths run behind them.
const HALO: &str = "text-anchor=\"middle\" paint-order=\"stroke\" stroke=\"#1b1a22\" stroke-width=\"6\"";
/// Lights of a room at most.
pub(crate) const LIGHTS_MAX: usize = 60;
/// The angle between two lights: they fill a disc evenly, and none moves when another comes.
const GOLDEN_ANGLE: f64 = 2.399_963_229_728_653;

/// The map, as SVG.
pub(crate) fn picture(palace: &Palace) -> String {
    let xs = || palace.rooms.iter().map(|room| room.x);
    let ys = || palace.rooms.iter().map(|room| room.y);
    let (west, east) = (xs().min().unwrap_or(0), xs().max().unwrap_or(0));
    let (south, north) = (ys().min().unwrap_or(0), ys().max().unwrap_or(0));
    let width = f64::from(east - west + 1) * CELL.0 + 2.0 * MARGIN;
    let height = f64::from(north - south + 1) * CELL.1 + 2.0 * MARGIN + TITLE;
    let most = palace.rooms.iter().map(|room| room.memories).max().unwrap_or(1).max(1);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" font-family=\"Georgia, serif\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#1b1a22\"/>\n\
         <text x=\"{MARGIN:.0}\" y=\"{:.0}\" font-size=\"22\" fill=\"#f2ead8\">{}</text>\n\
         <text x=\"{MARGIN:.0}\" y=\"{:.0}\" font-size=\"14\" fill=\"#a9a291\">{} memories in {} rooms</text>\n",
        MARGIN + 10.0,
        escaped(&cut(&palace.conversation, 48)),
        MARGIN + 34.0,
        palace.memories,
        palace.rooms.len(),
    );
    let centre = |room: &Room| {
        let x = MARGIN + (f64::from(room.x - west) + 0.5) * CELL.0;
        (x, MARGIN + TITLE + (f64::from(north - room.y) + 0.5) * CELL.1 - 14.0)
    };
    // A room was built beside the nearest that there was: paths lead to neighbours on the map.
    for (place, room) in palace.rooms.iter().enumerate() {
        let from = centre(room);
        for other in &palace.rooms[..place] {
            if (room.x - other.x).abs() + (room.y - other.y).abs() == 1 {
                let to = centre(other);
                let _ = writeln!(
                    svg,
                    "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#3a3747\" stroke-width=\"10\" stroke-linecap=\"round\"/>",
                    from.0, from.1, to.0, to.1
                );
            }
        }
    }
    for room in &palace.rooms {
        draw(&mut svg, room, centre(room), most);
    }
    svg + "</svg>\n"
}

fn draw(svg: &mut String, room: &Room, (x, y): (f64, f64), most: usize) {
    let share = (room.memories as f64 / most as f64).sqrt();
    let side = SIDE.0 + (SIDE.1 - SIDE.0) * share;
    // Neighbours in number are far apart in hue.
    let hue = (f64::from(room.room) * 137.508).rem_euclid(360.0);
    let (left, top) = (x - side / 2.0, y - side / 2.0);
    let _ = writeln!(
        svg,
        "<g><title>room {}: {} memories</title>\n<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{side:.1}\" height=\"{side:.1}\" rx=\"12\" \
         fill=\"hsl({hue:.0} 30% 24%)\" stroke=\"hsl({hue:.0} 45% 58%)\" stroke-width=\"2\"/>",
        room.room, room.memories
    );
    let lights = room.loci.len().min(LIGHTS_MAX);
    let reach = side / 2.0 - 9.0;
    // The oldest in the middle.
    for (place, locus) in room.loci.iter().take(lights).rev().enumerate() {
        let angle = place as f64 * GOLDEN_ANGLE;
        let away = reach * ((place as f64 + 0.5) / lights.max(1) as f64).sqrt();
        let radius = 1.6 + 2.6 * f64::from(locus.salience);
        let opacity = 0.35 + 0.65 * f64::from(locus.salience);
        let _ = writeln!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius:.1}\" fill=\"hsl({hue:.0} 85% 84%)\" opacity=\"{opacity:.2}\"/>",
            x + away * angle.cos(),
            y + away * angle.sin()
        );
    }
    let below = y + SIDE.1 / 2.0 + 20.0;
    let (name, colour) = called(room);
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{below:.1}\" font-size=\"15\" {HALO} fill=\"{colour}\">{}</text>\n\
         <text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"12\" {HALO} fill=\"#a9a291\">{}</text></g>",
        escaped(&cut(&name, 26)),
        below + 17.0,
        room.memories
    );
}

/// The map in words.
pub(crate) fn lines(palace: &Palace) -> String {
    let mut lines = format!("{}: {} memories\n", crate::watch::lines::plain(&palace.conversation), palace.memories);
    for room in &palace.rooms {
        let (name, _) = called(room);
        let name = crate::watch::lines::plain(&name);
        let _ = writeln!(
            lines,
            "  room {:<3} {name:<32} {:>5} memories  at {:+}, {:+}  salience {:.2}",
            room.room, room.memories, room.x, room.y, room.salience
        );
    }
    lines
}

fn called(room: &Room) -> (String, &'static str) {
    match &room.name {
        Some(name) if !name.is_empty() => (name.clone(), "#f2ead8"),
        Some(_) => ("without a name".to_owned(), "#a9a291"),
        None => ("not shown".to_owned(), "#a9a291"),
    }
}

fn cut(text: &str, max: usize) -> String {
    if text.chars().count() <= max { text.to_owned() } else { text.chars().take(max - 1).chain(['…']).collect() }
}

fn escaped(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .map(|c| match c {
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '&' => "&amp;".to_owned(),
            '"' => "&quot;".to_owned(),
            c => c.to_string(),
        })
        .collect()
}
