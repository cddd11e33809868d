//! Chat templates: from messages to the text that a model was trained on.

mod message;
mod python;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use minijinja::{Environment, ErrorKind, syntax::SyntaxConfig, value::Serde};
use serde_json::{Map, Value as Json};

pub use self::message::Message;
use crate::{Error, Result};

/// The chat template of a model, rendered as Hugging Face transformers does.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    path: PathBuf,
    /// `bos_token` and the like, which templates may use.
    tokens: Map<String, Json>,
}

const NAME: &str = "chat";
const SPECIAL_TOKENS: [&str; 8] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "additional_special_tokens",
];

impl ChatTemplate {
    /// Reads `chat_template.jinja` in the folder of a model, or else
    /// `chat_template` in its `tokenizer_config.json`: a template, or named ones
    /// of which this takes `default`.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`] if there is none, [`Error::ChatTemplate`] if it
    /// can't be parsed, [`Error::Io`] or [`Error::Json`] if a file can't be read.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let config_path = folder.join("tokenizer_config.json");
        let config = match read_if_there(&config_path)? {
            Some(text) => serde_json::from_str(&text)
                .map_err(|source| Error::Json { path: config_path.clone(), source })?,
            None => Map::new(),
        };
        let path = folder.join("chat_template.jinja");
        let template = match read_if_there(&path)? {
            Some(source) => Self::new(&path, source)?,
            None => match config.get("chat_template").and_then(default_template) {
                Some(source) => Self::new(&config_path, source.to_owned())?,
                None => return Err(Error::NoChatTemplate { path: folder.to_owned() }),
            },
        };
        Ok(Self { tokens: special_tokens(&config), ..template })
    }

    /// A template from its source; `path` is what errors name.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if it can't be parsed.
    pub fn new(path: impl AsRef<Path>, source: String) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.unwrap_or_default());
        // The rules of a file's kind would escape HTML.
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        python::install(&mut environment);
        let path = path.as_ref().to_owned();
        match environment.add_template_owned(NAME, source) {
            Ok(()) => Ok(Self { environment, path, tokens: Map::new() }),
            Err(error) => Err(Error::ChatTemplate { path, reason: reason(&error) }),
        }
    }

    /// The text of a conversation.
    ///
    /// With `add_generation_prompt` it ends where an answer of the assistant
    /// begins. `tools` is a list of JSON schemas of functions. `variables` are more
    /// names for the template to use, such as `enable_thinking`.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if the template rejects the messages, or asks for
    /// what is not there.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        tools: Option<&Json>,
        variables: &Map<String, Json>,
    ) -> Result<String> {
        let mut context = self.tokens.clone();
        context.extend(variables.clone());
        context.insert("messages".to_owned(), messages.iter().map(Message::to_json).collect());
        context.insert("tools".to_owned(), tools.cloned().unwrap_or_default());
        context.insert("documents".to_owned(), Json::Null);
        context.insert("add_generation_prompt".to_owned(), add_generation_prompt.into());
        let template = self.environment.get_template(NAME).map_err(|error| self.error(&error))?;
        template.render(Serde(&context)).map_err(|error| self.error(&error))
    }

    fn error(&self, error: &minijinja::Error) -> Error {
        Error::ChatTemplate { path: self.path.clone(), reason: reason(error) }
    }
}

/// What a template raised, in its own words; else what is wrong and where.
fn reason(error: &minijinja::Error) -> String {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(this) = cause {
        if let Some(raised) = this.downcast_ref::<python::Raised>() {
            return raised.to_string();
        }
        cause = this.source();
    }
    let hint = match error.kind() {
        ErrorKind::SyntaxError => "; the template can't be parsed",
        _ => "",
    };
    format!("{error}{hint}")
}

fn read_if_there(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { path: path.to_owned(), source }),
    }
}

fn default_template(value: &Json) -> Option<&str> {
    let Json::Array(named) = value else { return value.as_str() };
    let default = named.iter().find(|named| named["name"] == "default")?;
    default["template"].as_str()
}

fn special_tokens(config: &Map<String, Json>) -> Map<String, Json> {
    let content = |token: &Json| match token {
        Json::Object(token) => token.get("content").cloned().unwrap_or_default(),
        token => token.clone(),
    };
    let tokens = SPECIAL_TOKENS.iter().filter_map(|&name| {
        let token = match config.get(name)? {
            Json::Array(tokens) => tokens.iter().map(content).collect(),
            token => content(token),
        };
        (!token.is_null()).then(|| (name.to_owned(), token))
    });
    tokens.collect()
}
