//! Chat templates give the text that Python's jinja2 gives.

mod common;

use std::{fs, path::Path};

use common::folder;
use gdn_model::{ChatTemplate, Error, Message};
use serde_json::{Map, Value, json};

fn cases() -> Vec<Value> {
    let text = fs::read_to_string(folder("chat").join("cases.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[track_caller]
fn check(case: &Value, template: &ChatTemplate) {
    let messages: Vec<Message> = match case.get("messages") {
        Some(messages) => serde_json::from_value(messages.clone()).unwrap(),
        None => Vec::new(),
    };
    let tools = case.get("tools").filter(|tools| !tools.is_null());
    let add = case["add_generation_prompt"].as_bool().unwrap_or(true);
    let variables = case["variables"].as_object().unwrap();
    match (template.render(&messages, add, tools, variables), case["error"].as_str()) {
        (Ok(text), None) => {
            assert_eq!(text, case["expected"].as_str().unwrap(), "{}", case["name"])
        }
        (Err(error @ Error::ChatTemplate { .. }), Some(expected)) => {
            let message = error.to_string();
            assert!(message.ends_with(expected), "{}: {message} for {expected}", case["name"]);
        }
        (got, expected) => panic!("{}: {got:?} for {expected:?}", case["name"]),
    }
}

#[test]
fn the_family_template_gives_the_same_text() {
    let template = ChatTemplate::load(folder("chat")).unwrap();
    let cases: Vec<_> = cases().into_iter().filter(|case| case.get("messages").is_some()).collect();
    assert!(cases.len() >= 20);
    cases.iter().for_each(|case| check(case, &template));
}

#[test]
fn templates_behave_as_in_python() {
    let cases = cases().into_iter().filter(|case| case.get("template").is_some());
    let count = cases.map(|case| {
        let source = case["template"].as_str().unwrap().to_owned();
        check(&case, &ChatTemplate::new("inline", source).unwrap());
    });
    assert!(count.count() >= 10);
}

/// The API has the arguments of calls as text; templates go through their names.
#[test]
fn arguments_may_be_text() {
    let template = ChatTemplate::load(folder("chat")).unwrap();
    let render = |arguments: Value| {
        let call = json!({ "id": "1", "type": "function",
                           "function": { "name": "f", "arguments": arguments } });
        let mut message = Message::assistant(Value::Null);
        message.tool_calls = Some(vec![call]);
        template.render(&[Message::user("a"), message], false, None, &Map::new())
    };
    let object = render(json!({ "z": [1, 2], "a": "b" })).unwrap();
    assert_eq!(render(json!(r#"{"z": [1, 2], "a": "b"}"#)).unwrap(), object);
    assert!(object.find("parameter=z") < object.find("parameter=a"));
    assert_eq!(render(json!("")).unwrap(), render(json!({})).unwrap());
    assert!(matches!(render(json!("{nonsense")), Err(Error::ChatTemplate { .. })));
}

fn with_config(config: &Value, messages: &[Message]) -> Result<String, Error> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    ChatTemplate::load(folder.path())?.render(messages, true, None, &Map::new())
}

#[test]
fn the_tokenizer_config_may_hold_the_template() {
    let source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ unk_token }}";
    let tokens =
        json!({ "bos_token": "<s>", "eos_token": { "content": "</s>" }, "unk_token": null });
    let with = |template: Value| {
        let mut config = tokens.clone();
        config["chat_template"] = template;
        with_config(&config, &[Message::user("hi")])
    };
    assert_eq!(with(json!(source)).unwrap(), "<s>hi</s>");
    let tools = json!({ "name": "tool_use", "template": "wrong" });
    let named = json!([tools, { "name": "default", "template": source }]);
    assert_eq!(with(named).unwrap(), "<s>hi</s>");
    assert!(matches!(with(json!([tools])), Err(Error::NoChatTemplate { .. })));
    assert!(matches!(with(Value::Null), Err(Error::NoChatTemplate { .. })));
}

#[test]
fn what_is_wrong_is_named() {
    let empty = tempfile::tempdir().unwrap();
    let error = ChatTemplate::load(empty.path()).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::NoChatTemplate { .. }));
    assert!(message.contains("chat_template.jinja"), "{message}");

    let error = ChatTemplate::new("a.jinja", "{% if %}".to_owned()).unwrap_err();
    assert!(error.to_string().contains("a.jinja"), "{error}");
    fs::write(empty.path().join("tokenizer_config.json"), "{").unwrap();
    assert!(matches!(ChatTemplate::load(empty.path()), Err(Error::Json { .. })));
    let render = |source: &str| {
        let template = ChatTemplate::new(Path::new("a.jinja"), source.to_owned()).unwrap();
        template.render(&[], true, None, &Map::new()).unwrap_err().to_string()
    };
    assert!(render("{{ raise_exception('so') }}").ends_with("a.jinja: so"));
    assert!(render("{{ 1 | tojson(ensure_ascii=true) }}").contains("ensure_ascii"));
    assert!(render("{{ nope.x }}").contains("undefined"));
}

#[test]
fn the_date_is_todays() {
    let render = |source: &str| {
        let template = ChatTemplate::new("inline", source.to_owned()).unwrap();
        template.render(&[], true, None, &Map::new())
    };
    let today = || jiff::Zoned::now().strftime("%d %b %Y|%Y-%m-%d").to_string();
    // Midnight may pass.
    let before = today();
    let date = render("{{ strftime_now('%d %b %Y|%Y-%m-%d') }}").unwrap();
    assert!([before, today()].contains(&date), "{date}");
    let (long, iso) = date.split_once('|').unwrap();
    assert_eq!((long.len(), iso.len()), (11, 10), "{date}");
    assert_eq!((&long[..2], &long[7..]), (&iso[8..], &iso[..4]));
    assert!(render("{{ strftime_now('%') }}").is_err());
}
