//! Other sites' pages get nothing.

use api::Config;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, http};

use crate::site::Site;

#[tokio::test]
async fn socket_of_another_sites_page_is_refused() {
    let site = Site::start(Config::default()).await;
    for (origin, refused) in [("http://evil.example".to_owned(), true), (format!("http://{}", site.http), false)] {
        let mut request = format!("ws://{}/v1/stream", site.http).into_client_request().unwrap();
        request.headers_mut().insert(http::header::ORIGIN, origin.parse().unwrap());
        match tokio_tungstenite::connect_async(request).await {
            Err(Error::Http(response)) => assert!(refused && response.status() == 403, "{origin}"),
            Err(error) => panic!("{origin}: {error}"),
            Ok(_) => assert!(!refused, "{origin}"),
        }
    }
}

#[tokio::test]
async fn foreign_host_name_is_refused_and_the_page_allows_only_its_own_files() {
    let site = Site::start(Config::default()).await;
    let client = reqwest::Client::new();
    let page = client.get(format!("http://{}/", site.http));
    let refused = page.try_clone().unwrap().header("host", "rebound.example").send().await.unwrap();
    assert_eq!(refused.status(), 403);
    let page = page.send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let html = page.text().await.unwrap();
    assert!(!html.contains("style=") && !html.contains("onclick"), "the policy would drop these in silence");
}
