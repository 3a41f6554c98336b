// What only reads straight into memory can get wrong: which way they take, and what becomes of their connections.

use longshore_origin::Sink;
use std::io::{IoSliceMut, Read as _, Write as _};

/// A server of one connection a time that answers each request with the next of `answers`, whole, and then says how many
/// connections it took.
fn scripted(answers: Vec<Vec<u8>>) -> (String, std::thread::JoinHandle<usize>) {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut answers, mut connections) = (answers.into_iter().peekable(), 0);
        while answers.peek().is_some() {
            let (mut stream, _) = listener.accept().unwrap();
            connections += 1;
            let mut request = Vec::new();
            let mut piece = [0; 4096];
            while let Ok(len @ 1..) = stream.read(&mut piece) {
                request.extend_from_slice(&piece[..len]);
                if request.ends_with(b"\r\n\r\n") {
                    request.clear();
                    let Some(answer) = answers.next() else { break };
                    stream.write_all(&answer).unwrap();
                    if answer.starts_with(b"HTTP/1.0") || answers.peek().is_none() {
                        break;
                    }
                }
            }
        }
        connections
    });
    (url, server)
}

fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 {head}\r\n\r\n").as_bytes(), body].concat()
}

/// Reads from a plain server, with an artifact of 10 bytes that nobody was asked about.
async fn read_scripted(answers: Vec<Vec<u8>>) -> (Result<Vec<u8>>, Origins, usize) {
    let (url, server) = scripted(answers);
    let version = longshore_types::Version::new("etag:\"e\"").unwrap();
    let artifact = Arc::new(Artifact::new(format!("{url}/a.bin"), version, 10).unwrap());
    let origins = Origins::new(OriginOptions { stall_timeout_ms: 1000, ..options() }).unwrap();
    let bytes = read(&origins, &artifact, 0..10).await;
    (bytes, origins, server.join().unwrap())
}

const WHOLE: &str = "200 OK\r\nETag: \"e\"\r\nContent-Length: 10";

#[tokio::test]
async fn bodies_come_straight_and_connections_are_used_again() {
    let (fake, origins, artifact) = setup().await;
    let connections = |counters: Counters| counters.connections;
    for start in 0..5 {
        let bytes = read(&origins, &artifact, start..SIZE).await.unwrap();
        assert!(bytes == fake.content(KEY).unwrap().read(start..SIZE));
    }
    let stats = origins.stats();
    assert_eq!((stats.straight_reads, stats.streamed_reads), (5, 0));
    assert_eq!(stats.bytes, 5 * SIZE - 10);
    assert_eq!(connections(fake.counters()), 1, "one connection served all of them");
    // An error leaves it open as well.
    fake.fault(Fault::new(FaultKind::Status(503)).times(1));
    read(&origins, &artifact, 0..10).await.unwrap();
    assert_eq!(connections(fake.counters()), 1);
}

#[tokio::test]
async fn a_connection_that_was_closed_while_it_was_idle_is_replaced() {
    let mut closes = answer(WHOLE, b"0123456789");
    closes[7] = b'0';
    let keep = answer(&format!("{WHOLE}\r\nConnection: keep-alive"), b"0123456789");
    let mut pretends = keep.clone();
    pretends[7] = b'0';
    let (url, server) = scripted(vec![closes, pretends, keep]);
    let version = longshore_types::Version::new("etag:\"e\"").unwrap();
    let artifact = Arc::new(Artifact::new(format!("{url}/a.bin"), version, 10).unwrap());
    let origins = Origins::new(options()).unwrap();
    for _ in 0..3 {
        assert_eq!(read(&origins, &artifact, 0..10).await.unwrap(), b"0123456789");
    }
    assert_eq!(server.join().unwrap(), 3);
    assert_eq!(origins.stats().retries, 0, "it was not the origin's failure");
}

#[tokio::test]
async fn answers_of_another_length_are_refused_or_resumed() {
    let longer = answer("200 OK\r\nETag: \"e\"\r\nContent-Length: 11", b"0123456789a");
    let error = read_scripted(vec![longer]).await.0.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "the object has another size: {error}");

    // A part that says that it is the right one, and is longer.
    let (fake, origins, artifact) = setup().await;
    drop(fake);
    let part = "206 Partial Content\r\nETag: \"e\"\r\nContent-Range: bytes 2-5/10\r\nContent-Length: 5";
    let (url, server) = scripted(vec![answer(part, b"23456")]);
    let version = longshore_types::Version::new("etag:\"e\"").unwrap();
    let longer = Arc::new(Artifact::new(format!("{url}/a.bin"), version, 10).unwrap());
    let error = read(&origins, &longer, 2..6).await.unwrap_err();
    assert_says(&error, Code::Corrupt, &["more than the bytes 2..6"]);
    server.join().unwrap();
    drop(artifact);

    // One that is shorter is a body that was cut off.
    let part = "206 Partial Content\r\nETag: \"e\"\r\nContent-Range: bytes 2-5/10\r\nContent-Length: 2";
    let rest = "206 Partial Content\r\nETag: \"e\"\r\nContent-Range: bytes 4-5/10\r\nContent-Length: 2";
    let (url, server) = scripted(vec![answer(part, b"23"), answer(rest, b"45")]);
    let version = longshore_types::Version::new("etag:\"e\"").unwrap();
    let shorter = Arc::new(Artifact::new(format!("{url}/a.bin"), version, 10).unwrap());
    assert_eq!(read(&origins, &shorter, 2..6).await.unwrap(), b"2345");
    server.join().unwrap();
}

#[tokio::test]
async fn what_lies_behind_a_body_is_never_taken_for_another_answer() {
    let noisy = answer(WHOLE, b"0123456789HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx");
    let (url, server) = scripted(vec![noisy, answer(WHOLE, b"0123456789")]);
    let version = longshore_types::Version::new("etag:\"e\"").unwrap();
    let artifact = Arc::new(Artifact::new(format!("{url}/a.bin"), version, 10).unwrap());
    let origins = Origins::new(options()).unwrap();
    for _ in 0..2 {
        assert_eq!(read(&origins, &artifact, 0..10).await.unwrap(), b"0123456789");
    }
    assert_eq!(server.join().unwrap(), 2, "the connection was not used again");
}

#[tokio::test]
async fn what_is_not_plain_goes_through_the_library() {
    // A body without a length; and a place that another one names.
    let chunked = "200 OK\r\nETag: \"e\"\r\nContent-Length: 10\r\nTransfer-Encoding: chunked";
    let chunks = b"a\r\n0123456789\r\n0\r\n\r\n";
    let moved = answer("307 Temporary Redirect\r\nLocation: /b.bin\r\nContent-Length: 0", b"");
    let (bytes, origins, _) = read_scripted(vec![moved.clone(), moved, answer(WHOLE, b"0123456789")]).await;
    assert_eq!(bytes.unwrap(), b"0123456789");
    assert_eq!((origins.stats().straight_reads, origins.stats().streamed_reads), (0, 1));
    let (bytes, origins, _) = read_scripted(vec![answer(chunked, chunks), answer(chunked, chunks)]).await;
    // Whatever becomes of such an answer, it came through the library.
    drop(bytes);
    assert_eq!(origins.stats().straight_reads, 0);
}

#[tokio::test]
async fn a_read_that_is_given_up_ends_soon() {
    let (fake, origins, artifact) = setup().await;
    fake.fault(Fault::new(FaultKind::HangAfter(1000)));
    let token = CancellationToken::new();
    let work = tokio::spawn({
        let token = token.clone();
        async move { read_until(&origins, &artifact, 0..SIZE, token).await }
    });
    while fake.counters().get == 0 {
        tokio::task::yield_now().await;
    }
    let began = Instant::now();
    token.cancel();
    assert_eq!(work.await.unwrap().unwrap_err().code(), Code::Cancelled);
    assert!(began.elapsed() < Duration::from_secs(10), "the stall limit is 30 s");
}

/// Memory in slices of 1000 bytes, that takes so many and no more.
struct Sliced {
    bytes: Vec<u8>,
    at: usize,
    takes: usize,
}

impl Sink for Sliced {
    fn spare(&mut self, len_max: usize) -> Vec<IoSliceMut<'_>> {
        let end = (self.at + len_max.min(10_000)).min(self.bytes.len());
        self.bytes[self.at..end].chunks_mut(1000).map(IoSliceMut::new).collect()
    }

    fn filled(&mut self, len: usize) -> Result<()> {
        self.at += len;
        match self.at > self.takes {
            true => Err(Error::new(Code::Exhausted, "enough")),
            false => Ok(()),
        }
    }
}

#[tokio::test]
async fn memory_in_pieces_is_filled_and_a_sink_may_end_a_read() {
    let (fake, origins, artifact) = setup().await;
    let runtime = tokio::runtime::Handle::current();
    let work = move || {
        let token = CancellationToken::new();
        let mut all = Sliced { bytes: vec![0; SIZE as usize], at: 0, takes: usize::MAX };
        origins.read_into(&artifact, 0..SIZE, &mut all, &runtime, &token).unwrap();
        let mut some = Sliced { bytes: vec![0; SIZE as usize], at: 0, takes: 100_000 };
        let error = origins.read_into(&artifact, 0..SIZE, &mut some, &runtime, &token).unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::Exhausted, "enough"));
        let mut short = Sliced { bytes: vec![0; 5], at: 0, takes: usize::MAX };
        let error = origins.read_into(&artifact, 0..10, &mut short, &runtime, &token).unwrap_err();
        assert_says(&error, Code::Internal, &[URL, "no room"]);
        (all.bytes, some.at, origins.stats().retries)
    };
    let (all, some, retries) = tokio::task::spawn_blocking(work).await.unwrap();
    assert!(fake.content(KEY).unwrap().equals(&all));
    assert!(some > 100_000 && some < 400_000 && retries == 0, "{some} bytes, {retries} retries");
}
