//! Server-sent events, from bytes that are split anywhere.

/// Collects bytes, and gives the data of each event once it is complete.
#[derive(Debug, Default)]
pub(super) struct EventReader {
    /// A line that has not ended.
    line: Vec<u8>,
    /// The data lines of an event that has not ended.
    data: Option<Vec<u8>>,
    /// Whether the byte before was a carriage return, whose line feed may follow.
    after_cr: bool,
}

impl EventReader {
    /// The events that end in `bytes`.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut events = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' if self.after_cr => {}
                b'\n' | b'\r' => events.extend(self.end_line()),
                _ => self.line.push(byte),
            }
            self.after_cr = byte == b'\r';
        }
        events
    }

    /// What is left where the stream ends: an event whose blank line never came.
    pub(super) fn finish(mut self) -> Option<Vec<u8>> {
        self.end_line();
        self.data
    }

    /// Takes in a line; a blank one ends an event.
    fn end_line(&mut self) -> Option<Vec<u8>> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return self.data.take();
        }
        // Other fields, and comments, which keep connections alive, are not for us.
        let value = line.strip_prefix(b"data")?;
        let value = match value {
            [] => value,
            [b':', b' ', value @ ..] | [b':', value @ ..] => value,
            _ => return None,
        };
        match &mut self.data {
            None => self.data = Some(value.to_vec()),
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of a stream that comes in these pieces.
    fn events<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
        let mut reader = EventReader::default();
        let mut events: Vec<_> = pieces.into_iter().flat_map(|piece| reader.push(piece)).collect();
        events.extend(reader.finish());
        events.into_iter().map(|event| String::from_utf8(event).unwrap()).collect()
    }

    const STREAM: &str = ": hello\n\ndata: {\"text\":\"grün 🦀\"}\n\nevent: x\nid: 7\r\n\
        data: one\r\ndata:two\r\ndata\r\n\r\n:ping\rdata:  a b \r\rdatabase: no\n\ndata:[DONE]\n\n";
    const EVENTS: [&str; 4] = ["{\"text\":\"grün 🦀\"}", "one\ntwo\n", " a b ", "[DONE]"];

    #[test]
    fn events_do_not_depend_on_where_the_stream_is_split() {
        let bytes = STREAM.as_bytes();
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                assert_eq!(events(pieces), EVENTS, "split at {first} and {second}");
            }
        }
        assert_eq!(events(bytes.chunks(1)), EVENTS);
    }

    #[test]
    fn an_event_comes_with_its_blank_line_and_not_later() {
        let mut reader = EventReader::default();
        assert!(reader.push(b"data: a\n").is_empty());
        assert_eq!(reader.push(b"\ndata: b\r\n\r"), [b"a", b"b"]);
        assert!(reader.push(b"\n").is_empty());
        assert_eq!(reader.finish(), None);
    }

    #[test]
    fn the_last_event_needs_no_blank_line() {
        assert_eq!(events([&b"data: a\n\ndata: b"[..]]), ["a", "b"]);
        assert!(events([&b""[..]]).is_empty());
        assert!(events([&b"\n\n\n"[..]]).is_empty());
    }
}
