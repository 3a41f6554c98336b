use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;

use super::*;

/// Reads one HTTP request and answers 200: head and body.
fn receive(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut buffer = [0u8; 4096];
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "the request ended in its head");
        bytes.extend_from_slice(&buffer[..read]);
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap().to_lowercase();
    let length: usize = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap().parse().unwrap();
    let mut body = bytes.split_off(head_end);
    while body.len() < length {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "the request ended in its body");
        body.extend_from_slice(&buffer[..read]);
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
    (head, body)
}

fn holds(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn spans_reach_an_otlp_collector() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let (sender, received) = mpsc::channel();
    let collector = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        sender.send(receive(&mut stream)).unwrap();
    });

    let provider = provider(&endpoint, "longshore-under-test").unwrap();
    let subscriber = tracing_subscriber::registry().with(trace_layer(&provider));
    tracing::subscriber::with_default(subscriber, || {
        let load = tracing::info_span!(target: "longshore_loader", "load_model", uri = "s3://bucket/model");
        let _entered = load.enter();
        tracing::info_span!(target: "hyper", "not_ours").in_scope(|| ());
        tracing::info_span!(target: "longshore_worker", "fill_chunk", bytes = 17).in_scope(|| ());
    });
    drop(Guard { provider: Some(provider) });

    let (head, body) = received.recv_timeout(Duration::from_secs(10)).unwrap();
    collector.join().unwrap();
    assert!(head.starts_with("post /v1/traces") && head.contains("application/x-protobuf"), "{head}");
    for text in ["longshore-under-test", "load_model", "fill_chunk", "s3://bucket/model"] {
        assert!(holds(&body, text), "{text} is not in the exported spans");
    }
    assert!(!holds(&body, "not_ours"));
}

#[test]
fn malformed_options_are_refused() {
    let args = |level: Option<&str>, endpoint: Option<&str>| TelemetryArgs {
        log_format: LogFormat::Text,
        log_level: level.map(str::to_owned),
        otlp_endpoint: endpoint.map(str::to_owned),
    };
    for args in [args(Some("a=b=c"), None), args(None, Some("collector:4318"))] {
        assert_eq!(init(&args, "x", "info").unwrap_err().code(), Code::InvalidArgument);
    }
}

#[test]
fn lost_traces_are_logged_once() {
    // A port that was just free: nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("http://{address}/v1/traces"))
        .with_timeout(Duration::from_millis(500))
        .build()
        .unwrap();
    // The simple processor exports on this thread, where the log can be caught.
    let provider = SdkTracerProvider::builder().with_simple_exporter(Reported::new(exporter)).build();
    let log = Log::default();
    let text = tracing_subscriber::fmt::layer().with_ansi(false).with_writer({
        let log = log.clone();
        move || log.clone()
    });
    let subscriber = tracing_subscriber::registry().with(text).with(trace_layer(&provider));
    tracing::subscriber::with_default(subscriber, || {
        for _ in 0..3 {
            tracing::info_span!(target: "longshore_loader", "load_model").in_scope(|| ());
        }
    });
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.matches("WARN").count(), 1, "{text}");
    assert!(text.contains("traces are lost"), "{text}");
}

#[derive(Clone, Default)]
struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
