//! A tokenizer file of the crate `tokenizers`, as far as it matters here. Leaves out: every way of cutting but one.

use std::collections::HashMap;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{CONTINUING, UNKNOWN, WORD_CHARS_MAX};

/// The file, as far as it matters here.
#[derive(Deserialize)]
pub(super) struct Described {
    pub(super) model: Model,
    normalizer: Normalizer,
    pre_tokenizer: PreTokenizer,
    pub(super) post_processor: Template,
    pub(super) added_tokens: Vec<Added>,
}

/// What stands around a text: `[CLS]` before and `[SEP]` after it.
#[derive(Deserialize)]
pub(super) struct Template {
    r#type: String,
    pub(super) special_tokens: HashMap<String, TemplateToken>,
}

#[derive(Deserialize)]
pub(super) struct TemplateToken {
    pub(super) ids: Vec<u32>,
}

#[derive(Deserialize)]
pub(super) struct Model {
    r#type: String,
    unk_token: String,
    continuing_subword_prefix: String,
    max_input_chars_per_word: usize,
    pub(super) vocab: Vocabulary,
}

#[derive(Deserialize)]
pub(super) struct Normalizer {
    r#type: String,
    clean_text: bool,
    handle_chinese_chars: bool,
    strip_accents: Option<bool>,
    lowercase: bool,
}

#[derive(Deserialize)]
pub(super) struct PreTokenizer {
    r#type: String,
}

#[derive(Deserialize)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
}

impl Described {
    /// Whether all that it asks for is what is done here.
    pub(super) fn is_known(&self) -> bool {
        let Described { model, normalizer: n, pre_tokenizer, post_processor, added_tokens } = self;
        let plain = |t: &Added| t.content.starts_with('[') && !(t.single_word || t.lstrip || t.rstrip || t.normalized);
        model.r#type == "WordPiece"
            && model.unk_token == UNKNOWN
            && model.continuing_subword_prefix == CONTINUING
            && model.max_input_chars_per_word == WORD_CHARS_MAX
            && (n.r#type == "BertNormalizer" && n.clean_text && n.handle_chinese_chars && n.lowercase)
            && n.strip_accents.unwrap_or(n.lowercase)
            && pre_tokenizer.r#type == "BertPreTokenizer"
            && post_processor.r#type == "TemplateProcessing"
            && added_tokens.iter().all(plain)
    }
}

/// The pieces with their ids, without a map in between.
pub(super) struct Vocabulary(pub(super) Vec<(String, u32)>);

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Vocabulary, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of pieces to ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
                let mut entries = Vec::with_capacity(1 << 15);
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Vocabulary(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
