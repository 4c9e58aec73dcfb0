//! What routers ask when they register a worker, and how they end a request.

use serde_json::json;

use crate::http::{get, post};
use crate::{Server, mock, wait_until};

#[test]
fn a_router_learns_the_model_under_both_names_of_each_path() {
    let server = Server::start_chat(&["--served-model-name", "org/m"], mock::harmony_tokenizer(), None);
    server.worker.stats.lock().unwrap().kv_blocks_total = 10;
    for path in ["/server_info", "/get_server_info"] {
        let (status, info) = get(server.addr, path);
        assert_eq!(
            (status, &info["served_model_name"], &info["model_path"]),
            (200, &json!("org/m"), &json!("echo.gguf"))
        );
        assert_eq!(
            (&info["dp_size"], &info["tp_size"], &info["max_total_tokens"]),
            (&json!(1), &json!(1), &json!(160))
        );
    }
    for path in ["/model_info", "/get_model_info"] {
        let (status, info) = get(server.addr, path);
        assert_eq!(
            (status, &info["is_generation"], &info["chat_format"]),
            (200, &json!(true), &json!("harmony"))
        );
    }
    let (status, info) = get(Server::start_loading(&[]).addr, "/model_info");
    assert_eq!((status, &info["vocab_size"]), (200, &json!(null)));
}

#[test]
fn a_router_can_end_one_request_or_all() {
    let server = Server::start(&[]);
    let begin = |name: &str| {
        let mut stream = post(server.addr, "/execute", &json!({ "job_id": name, "prompt": "abc" }));
        stream.next_event();
        stream.next_event();
        stream
    };
    let one = begin("hang-1");
    assert_eq!(post(server.addr, "/abort_request", &json!({ "rid": "hang-1" })).status, 200);
    assert_eq!(one.events().last().unwrap().data["code"], "CANCELLED");
    let all = [begin("hang-2"), begin("hang-3")];
    assert_eq!(post(server.addr, "/abort_request", &json!({ "abort_all": true })).status, 200);
    for stream in all {
        assert_eq!(stream.events().last().unwrap().data["code"], "CANCELLED");
    }
    wait_until(|| server.state.jobs.is_empty());
    assert_eq!(post(server.addr, "/abort_request", &json!({})).status, 400);
    assert_eq!(post(server.addr, "/abort_request", &json!({ "rid": "nobody" })).status, 200);
}
