use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

async fn request(address: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn the_standard_pages_answer_until_the_token_is_cancelled() {
    let metrics = Metrics::new();
    metrics.counter("longshore_seen_total", "Seen.").unwrap().inc();
    let ready = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_ready = ready.clone();
    let handler = standard(
        metrics,
        Arc::new(move || {
            if is_ready.load(std::sync::atomic::Ordering::Relaxed) { Ok(()) } else { Err("still opening".into()) }
        }),
    );
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let token = CancellationToken::new();
    let server = tokio::spawn(serve(listener, handler, token.clone()));

    let metrics = request(address, "GET /metrics").await;
    assert!(metrics.starts_with("HTTP/1.1 200") && metrics.contains("longshore_seen_total 1"), "{metrics}");
    assert!(request(address, "GET /healthz?x=1").await.starts_with("HTTP/1.1 200"));
    let not_ready = request(address, "GET /readyz").await;
    assert!(not_ready.starts_with("HTTP/1.1 503") && not_ready.contains("still opening"), "{not_ready}");
    ready.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(request(address, "GET /readyz").await.starts_with("HTTP/1.1 200"));
    assert!(request(address, "GET /nothing").await.starts_with("HTTP/1.1 404"));
    assert!(request(address, "POST /metrics").await.starts_with("HTTP/1.1 405"));

    token.cancel();
    // Ends, and closes the listener with it. Connecting would prove nothing: another process may have the port by now.
    server.await.unwrap();
}

#[tokio::test]
async fn a_taken_address_is_named() {
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let error = bind(address).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains(&address.to_string()), "{error}");
}
