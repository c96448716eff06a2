//! `undertone synesthesia`: a text as a palette, a sound and a texture; drawn and played where files are asked for.

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use processors::{Chain, Models};
use schemas::{Codec, Synesthesia, Tier};

use super::say;
use crate::config::Config;
use crate::{locate, synesthesia};

pub(super) fn synesthesia(config: &Config, args: &super::Synesthesia) -> anyhow::Result<ExitCode> {
    let part = part(config, &args.text, args.tier.into())?;
    if let Some(path) = &args.svg {
        write(path, synesthesia::picture(&part, &args.text).as_bytes())?;
    }
    if let Some(path) = &args.wav {
        write(path, &synesthesia::sound(&part, &args.text)?)?;
    }
    if args.json {
        return say(&serde_json::to_string(&part).context("write the part")?);
    }
    say(&described(&part, std::io::stdout().is_terminal()))
}

/// What the stages say of a text, as the first turn of a conversation.
fn part(config: &Config, text: &str, tier: Tier) -> anyhow::Result<Synesthesia> {
    let (dir, library) = (locate::models(&config.models.dir)?, locate::onnxruntime(&config.models.onnxruntime)?);
    let models = Models::open(&dir, &library, &config.options())?;
    let chain = Chain::new(processors::stages::all(&models), true, Arc::new(Codec::embedded()));
    let turns = processors::analyze(&chain, &[text.to_owned()], tier, 0, false)?;
    let turn = turns.into_iter().next().context("one text makes one turn")?;
    let why = || {
        turn.skipped
            .iter()
            .find(|skipped| skipped.stage == "synesthesia")
            .map_or("no reason given", |s| s.reason.as_str())
    };
    turn.synesthesia.with_context(|| format!("this text has no palette: {}", why()))
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("write {}; does its folder exist?", path.display()))
}

/// A part in words, in colour where a terminal shows it.
pub(super) fn described(part: &Synesthesia, colour: bool) -> String {
    let shown = part.palette.iter().map(|swatch| match rgb(&swatch.colour).filter(|_| colour) {
        Some([r, g, b]) => format!("\x1b[48;2;{r};{g};{b}m  \x1b[0m {}", swatch.colour),
        None => swatch.colour.clone(),
    });
    let (sound, texture) = (&part.sound, &part.texture);
    format!(
        "  palette    {}\n  sound      {:.0} bpm, {}, {}, {}, tonic {}\n  texture    {} (rough {:.2}, dense {:.2}, moving {:.2})\n",
        shown.collect::<Vec<_>>().join(" "),
        sound.tempo_bpm,
        sound.mode,
        sound.timbre,
        sound.dynamics,
        sound.register,
        texture.name,
        texture.roughness,
        texture.density,
        texture.motion
    )
}

fn rgb(hex: &str) -> Option<[u8; 3]> {
    let [_, r, g, b] = u32::from_str_radix(hex.strip_prefix('#')?, 16).ok()?.to_be_bytes();
    Some([r, g, b])
}
