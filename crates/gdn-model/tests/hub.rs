//! Models by folder and by id, in a cache in the layout of Hugging Face's tools.

use std::{
    fs,
    path::{Path, PathBuf},
};

use gdn_model::{Error, Hub};
use tempfile::TempDir;

const ID: &str = "org/some-model_1.5";

fn resolve(hub: &Hub, model: &str) -> Result<PathBuf, Error> {
    hub.resolve(model, &mut |_| ())
}

fn snapshot(cache: &Path, revision: &str, files: &[&str]) -> PathBuf {
    let folder = cache.join("models--org--some-model_1.5").join("snapshots").join(revision);
    fs::create_dir_all(&folder).unwrap();
    for file in files {
        fs::write(folder.join(file), "{}").unwrap();
    }
    folder
}

fn main_is(cache: &Path, revision: &str) {
    let refs = cache.join("models--org--some-model_1.5").join("refs");
    fs::create_dir_all(&refs).unwrap();
    fs::write(refs.join("main"), revision).unwrap();
}

const WHOLE: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];

#[test]
fn a_folder_is_itself() {
    let folder = TempDir::new().unwrap();
    let hub = Hub::offline(folder.path());
    let path = folder.path().to_str().unwrap();
    assert_eq!(resolve(&hub, path).unwrap(), folder.path());
    for nothing in
        ["/no/such/folder", "./model", "model", "", "org/", "a/b/c", "../x", "org/..", "a b/c"]
    {
        let error = resolve(&hub, nothing).unwrap_err();
        assert!(matches!(error, Error::NoModel { .. }), "{nothing}: {error}");
        assert!(error.to_string().contains("an id such as org/name"));
    }
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(resolve(&hub, file.to_str().unwrap()), Err(Error::NoModel { .. })));
}

#[test]
fn the_cache_is_looked_up() {
    let cache = TempDir::new().unwrap();
    let hub = Hub::offline(cache.path());
    let error = resolve(&hub, ID).unwrap_err();
    assert!(matches!(error, Error::Fetch { .. }));
    for word in [ID, cache.path().to_str().unwrap(), "can't be fetched", "name its folder"] {
        assert!(error.to_string().contains(word), "{error}");
    }

    let old = snapshot(cache.path(), "old", &WHOLE);
    assert_eq!(resolve(&hub, ID).unwrap(), old);
    let new = snapshot(cache.path(), "new", &WHOLE);
    main_is(cache.path(), "new");
    assert_eq!(resolve(&hub, ID).unwrap(), new);
    fs::remove_file(new.join("config.json")).unwrap();
    assert_eq!(resolve(&hub, ID).unwrap(), old);
    fs::remove_file(old.join("tokenizer.json")).unwrap();
    assert!(resolve(&hub, ID).is_err());
}

#[test]
fn shards_must_all_be_there() {
    let cache = TempDir::new().unwrap();
    let hub = Hub::offline(cache.path());
    let shards = ["model-1-of-2.safetensors", "model-2-of-2.safetensors"];
    let folder = snapshot(cache.path(), "r", &["config.json", "tokenizer.json", shards[0]]);
    assert!(resolve(&hub, ID).is_err());
    let index = serde_json::json!({ "weight_map": { "a": shards[0], "b": shards[1] } });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    assert!(resolve(&hub, ID).is_err());
    fs::write(folder.join(shards[1]), "").unwrap();
    assert_eq!(resolve(&hub, ID).unwrap(), folder);
}

#[cfg(feature = "fetch")]
mod fetch {
    use std::{
        io::{BufRead, BufReader, Write},
        net::{TcpListener, TcpStream},
        sync::{Arc, Mutex},
        thread,
    };

    use super::*;

    /// A server with these files, which remembers what it was asked for.
    fn server(files: &'static [(&'static str, &'static str)]) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                _ = answer(stream, files, &log);
            }
        });
        (endpoint, asked)
    }

    fn answer(
        mut stream: TcpStream,
        files: &[(&str, &str)],
        log: &Mutex<Vec<String>>,
    ) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut range = None;
        for line in lines.by_ref() {
            let line = line?.to_lowercase();
            if let Some(bytes) = line.strip_prefix("range: bytes=") {
                let (start, end) = bytes.split_once('-').unwrap();
                range = Some((start.parse::<usize>().unwrap(), end.parse::<usize>().ok()));
            }
            if line.is_empty() {
                break;
            }
        }
        log.lock().unwrap().push(path.clone());
        let found = path
            .strip_prefix("/org/some-model_1.5/resolve/main/")
            .and_then(|name| files.iter().find(|(file, _)| *file == name));
        let (status, head, body) = if path.starts_with("/api/models/org/some-model_1.5") {
            let list = files.iter().map(|(file, _)| serde_json::json!({ "rfilename": file }));
            let list = list.collect::<serde_json::Value>();
            let info = serde_json::json!({ "sha": "c0ffee", "siblings": list });
            ("200 OK", String::new(), info.to_string())
        } else if let Some((name, text)) = found {
            let (start, end) = range.unwrap();
            let part = &text[start..end.map_or(text.len(), |end| end + 1)];
            let last = start + part.len() - 1;
            let head = format!(
                "Content-Range: bytes {start}-{last}/{}\r\nETag: \"{name}\"\r\nX-Repo-Commit: c0ffee\r\n",
                text.len()
            );
            ("206 Partial Content", head, part.to_owned())
        } else {
            ("404 Not Found", String::new(), String::new())
        };
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\n{head}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
    }

    #[test]
    fn what_is_missing_is_fetched() {
        let (endpoint, asked) = server(&[
            ("model.safetensors", "weights"),
            ("README.md", "not wanted"),
            ("config.json", "{\"a\": 1}"),
            ("tokenizer.json", "{}"),
            ("tokenizer_config.json", "{}"),
            ("original/model.safetensors", "not wanted"),
            ("pytorch_model.bin", "not wanted"),
        ]);
        let cache = TempDir::new().unwrap();
        let hub = Hub::with_endpoint(cache.path(), endpoint);
        let mut seen = Vec::new();
        let folder = hub
            .resolve(ID, &mut |f| seen.push((f.file.to_owned(), f.number, f.bytes, f.size)))
            .unwrap();
        assert!(folder.ends_with("models--org--some-model_1.5/snapshots/c0ffee"));
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
        assert_eq!(
            (read("model.safetensors"), read("config.json")),
            ("weights".into(), "{\"a\": 1}".into())
        );
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 4);
        assert_eq!(seen.last().unwrap(), &("model.safetensors".to_owned(), 4, 7, 7));

        // Now it is in the cache, also for those who must not ask.
        let before = asked.lock().unwrap().len();
        assert_eq!(resolve(&hub, ID).unwrap(), folder);
        assert_eq!(asked.lock().unwrap().len(), before);
        assert_eq!(resolve(&Hub::offline(cache.path()), ID).unwrap(), folder);

        // A file that got lost is fetched alone.
        fs::remove_file(folder.join("tokenizer.json")).unwrap();
        assert_eq!(resolve(&hub, ID).unwrap(), folder);
        let asked = asked.lock().unwrap();
        assert!(
            asked[before..]
                .iter()
                .all(|path| path.contains("/api/") || path.ends_with("tokenizer.json"))
        );
    }

    #[test]
    fn what_can_not_be_fetched_says_why() {
        let (endpoint, _) = server(&[("config.json", "{}")]);
        let cache = TempDir::new().unwrap();
        let error = |endpoint: &str, model: &str| {
            let error = resolve(&Hub::with_endpoint(cache.path(), endpoint), model).unwrap_err();
            assert!(matches!(error, Error::Fetch { .. }));
            error.to_string()
        };
        assert!(error(&endpoint, ID).contains("it lacks config.json, tokenizer.json or weights"));
        let missing = error(&endpoint, "org/other");
        assert!(missing.contains("no such model") && missing.contains("HF_TOKEN"), "{missing}");
        // Nobody listens there.
        let closed = error("http://127.0.0.1:1", ID);
        assert!(closed.contains("fetch it where there is a network"), "{closed}");
    }
}
