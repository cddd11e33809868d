//! Every way to cut a text gives the same.

use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::json;

use super::*;

/// What comes of a text in these pieces, runs of the same kind joined.
fn run(syntax: &Syntax, pieces: &[&str]) -> Vec<Delta> {
    let mut parser = Parser::new(syntax);
    let mut all: Vec<Delta> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    all.extend(parser.finish());
    let mut joined: Vec<Delta> = Vec::new();
    for delta in all {
        match (joined.last_mut(), delta) {
            (Some(Delta::Reasoning(text)), Delta::Reasoning(more))
            | (Some(Delta::Content(text)), Delta::Content(more)) => text.push_str(&more),
            (
                Some(Delta::Arguments { index, json }),
                Delta::Arguments { index: same, json: more },
            ) if *index == same => json.push_str(&more),
            (_, delta) => joined.push(delta),
        }
    }
    joined
}

fn check(syntax: &Syntax, text: &str, expected: &[Delta]) {
    assert_eq!(run(syntax, &[text]), expected, "{text:?}");
    let places: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
    for &cut in &places {
        let (a, b) = text.split_at(cut);
        assert_eq!(run(syntax, &[a, b]), expected, "{a:?} + {b:?}");
        for &other in places.iter().filter(|&&other| other > cut) {
            let (b, c) = (&text[cut..other], &text[other..]);
            assert_eq!(run(syntax, &[a, b, c]), expected, "{a:?} + {b:?} + {c:?}");
        }
    }
    let each: Vec<&str> = text.split("").filter(|c| !c.is_empty()).collect();
    assert_eq!(run(syntax, &each), expected, "{text:?} by characters");
}

fn thoughts(text: &str) -> Delta {
    Delta::Reasoning(text.to_owned())
}

fn content(text: &str) -> Delta {
    Delta::Content(text.to_owned())
}

fn call(index: usize, name: &str, json: &str) -> [Delta; 2] {
    [
        Delta::Call { index, name: name.to_owned() },
        Delta::Arguments { index, json: json.to_owned() },
    ]
}

fn tools(one_call: bool) -> Option<Arc<Schemas>> {
    let schema = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "share": {"type": ["number", "null"]},
            "wind": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "unit": {"$ref": "#/$defs/unit"},
            "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        },
        "$defs": {"unit": {"enum": ["C", "F"]}},
    });
    let functions = [("weather".to_owned(), schema)].into_iter().collect();
    Some(Arc::new(Schemas { functions, one_call }))
}

fn chat(thinking: bool) -> Syntax {
    Syntax { reasoning: true, thinking, tools: tools(false) }
}

#[test]
fn thoughts_end_where_they_are_closed() {
    let open = Syntax { reasoning: true, thinking: true, tools: None };
    check(
        &open,
        "a < b\n</thin k\n</think>\n\nIt is é.\n",
        &[thoughts("a < b\n</thin k"), content("It is é.\n")],
    );
    check(&open, "\nnever closed </thin", &[thoughts("never closed </thin")]);
    check(&open, "</think>x", &[content("x")]);
    check(&open, "\n\n</think>\n\n", &[]);
    check(
        &open,
        "a <tool_call>\n<function=f> b</think>c",
        &[thoughts("a <tool_call>\n<function=f> b"), content("c")],
    );
}

#[test]
fn thoughts_may_be_opened_by_the_answer() {
    let closed = Syntax { reasoning: true, thinking: false, tools: None };
    check(&closed, " \n<think>\nhm\n</think>\n\nyes", &[thoughts("hm"), content("yes")]);
    check(&closed, " <thin air", &[content(" <thin air")]);
    check(&closed, "a <think>b</think>", &[content("a <think>b</think>")]);
    let off = Syntax::default();
    check(&off, "<think>b</think> c", &[content("<think>b</think> c")]);
}

#[test]
fn a_call_within_thoughts_ends_them() {
    let mut expected = vec![thoughts("I ask <tool_call> now")];
    expected.extend(call(0, "weather", r#"{"city":"Oslo"}"#));
    let text = "I ask <tool_call> now\n<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n\
                </parameter>\n</function>\n</tool_call>";
    check(&chat(true), text, &expected);
}

#[test]
fn values_have_the_types_of_the_schema() {
    let text = "Let me look.\n\n<tool_call>\n<function=weather>\n\
                <parameter=city>\n3\n\n</parameter>\n<parameter=days>\n3\n</parameter>\n\
                <parameter=share>\nNone\n</parameter>\n<parameter=wind>True</parameter>\n\
                <parameter=tags>\n[\"a\", \"<b>\"]\n</parameter>\n\
                <parameter=unit>\nC\n</parameter>\n<parameter=either>\nx \"y\"\n</parameter>\n\
                <parameter=other>\n{\"k\": 1}\n</parameter>\n<parameter=more>\n7\n</parameter>\n\
                </function>\n</tool_call>";
    let json = r#"{"city":"3\n","days":3,"share":null,"wind":true,"tags":["a","<b>"],"unit":"C","either":"x \"y\"","other":{"k":1},"more":"7"}"#;
    let [name, arguments] = call(0, "weather", json);
    check(&chat(false), text, &[content("Let me look."), name, arguments]);
}

#[test]
fn values_of_another_type_stay_text() {
    let text = "<tool_call><function=weather><parameter=days>soon</parameter>\
                <parameter=wind>7</parameter></function></tool_call>";
    let expected = call(0, "weather", r#"{"days":"soon","wind":"7"}"#);
    check(&chat(false), text, &expected);
}

#[test]
fn several_calls_and_none() {
    let text = "<tool_call>\n<function=weather>\n</function>\n</tool_call>\n\
                <tool_call>\n<function=b>\n<parameter=x>\ny\n</parameter>\n</tool_call>\n and so on.";
    let mut expected = call(0, "weather", "{}").to_vec();
    expected.extend(call(1, "b", r#"{"x":"y"}"#));
    expected.push(content("and so on."));
    check(&chat(false), text, &expected);

    let one = Syntax { tools: tools(true), ..Syntax::default() };
    let mut expected = call(0, "weather", "{}").to_vec();
    expected.push(content("and so on."));
    check(&one, text, &expected);

    check(&chat(false), "No < call.\n", &[content("No < call.\n")]);
    check(&chat(false), "a <tool_call> b", &[content("a<tool_call> b")]);
}

#[test]
fn calls_as_json() {
    let text = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n\
                </tool_call>\n<tool_call>\n{\"name\": 3}\n</tool_call>";
    let mut expected = call(0, "weather", r#"{"city":"Oslo"}"#).to_vec();
    expected.push(content("<tool_call>\n{\"name\": 3}\n</tool_call>"));
    check(&chat(false), text, &expected);
}

#[test]
fn what_is_cut_short_is_kept() {
    let text = "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n\
                <parameter=days>\n1";
    check(&chat(false), text, &call(0, "weather", r#"{"city":"Oslo""#));
    check(&chat(false), "a <tool_call>\n<func", &[content("a<tool_call>\n<func")]);
}

const FRAGMENTS: [&str; 18] = [
    "<tool_call>",
    "</tool_call>",
    "<function=weather>",
    "<function=",
    "</function>",
    "<parameter=days>",
    "<parameter=city",
    "</parameter>",
    "<think>",
    "</think>",
    "<tool_call>\n<function=weather>\n<parameter=city>\n",
    "{\"name\": \"f\"}",
    "\n",
    " ",
    "<",
    ">",
    "é",
    "3",
];

proptest! {
    /// Nonsense too comes out the same, whatever the cuts.
    #[test]
    fn cuts_do_not_matter(
        fragments in vec(select(&FRAGMENTS[..]), 0..14),
        cuts in vec(any::<prop::sample::Index>(), 0..6),
        [reasoning, thinking, calls, one_call] in any::<[bool; 4]>(),
    ) {
        let text = fragments.concat();
        let syntax = Syntax {
            reasoning,
            thinking,
            tools: calls.then(|| tools(one_call)).flatten(),
        };
        let mut places: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
        places.push(text.len());
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| *cut.get(&places)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
        let whole = run(&syntax, &[&text]);
        prop_assert_eq!(run(&syntax, &pieces), whole.clone(), "{:?}", pieces);
        let each: Vec<&str> = text.split("").filter(|c| !c.is_empty()).collect();
        prop_assert_eq!(run(&syntax, &each), whole);
    }
}
