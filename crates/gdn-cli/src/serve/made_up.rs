//! Words for weights that are made up.

use std::{fs::File, io::BufWriter};

use anyhow::Context;
use gdn_server::ModelText;
use serde_json::{Map, Value, json};

/// Token 12 is the text ` 12`, and so on: what such a model says can be read, counted and sent
/// again. What is no such number is token 0.
pub(super) fn text(vocab_size: usize) -> anyhow::Result<ModelText> {
    let folder = tempfile::tempdir().context("no folder for a tokenizer")?;
    let file = File::create(folder.path().join("tokenizer.json"))?;
    // In byte-level vocabularies this letter stands for a space.
    let word = |id: usize| (format!("Ġ{id}"), id.into());
    let vocab: Map<String, Value> = (0..vocab_size).map(word).collect();
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
        "use_regex": true });
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": bytes,
        "decoder": bytes,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "Ġ0" },
    });
    serde_json::to_writer(BufWriter::new(file), &tokenizer)?;
    Ok(ModelText::load(folder.path())?)
}

#[cfg(test)]
mod tests {
    /// Through the file, as a server reads it.
    #[test]
    fn numbers_are_words() {
        let text = super::text(2000).unwrap();
        let tokenizer = text.tokenizer();
        assert_eq!(tokenizer.encode("12 1999 7").unwrap(), [12, 1999, 7]);
        assert_eq!(tokenizer.encode(" 2000 what").unwrap(), [0, 0]);
        let mut stream = tokenizer.stream();
        let said = [5, 0, 1999].map(|token| stream.push(token).unwrap().unwrap());
        assert_eq!(said.concat(), " 5 0 1999");
        assert_eq!(tokenizer.encode(&said.concat()).unwrap(), [5, 0, 1999]);
    }
}
