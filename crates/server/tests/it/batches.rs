//! Files and batches: a file of lines becomes a file of results, each line answered once.

use axum::body::Body;
use axum::http::Request;
use bitnet_server::Config;
use serde_json::{Value, json};

use crate::world::{Answer, World};

fn upload(world: &World, purpose: &str, lines: &str) -> Answer {
    let form = format!(
        "--X\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\n{purpose}\r\n\
         --X\r\ncontent-disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\r\n\r\n{lines}\r\n--X--\r\n"
    );
    let request = Request::post("/v1/files").header("content-type", "multipart/form-data; boundary=X").body(Body::from(form));
    world.send(request.expect("a request"))
}

fn line(index: usize) -> Value {
    let body = json!({ "model": "sim", "prompt": format!("line {index}"), "max_tokens": 3, "temperature": 0 });
    json!({ "custom_id": format!("r{index}"), "method": "POST", "url": "/v1/completions", "body": body })
}

fn finished(world: &World, id: &str) -> Value {
    loop {
        let batch = world.get(&format!("/v1/batches/{id}")).json();
        if !["in_progress", "cancelling", "finalizing"].contains(&batch["status"].as_str().expect("a status")) {
            return batch;
        }
        world.block_on(tokio::task::yield_now());
    }
}

#[test]
fn every_line_is_answered_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new(Config { data_folder: Some(folder.path().to_path_buf()), ..Config::default() });
    let mut lines: Vec<String> = (0..50).map(|index| line(index).to_string()).collect();
    lines.push(r#"{"custom_id":"bad","method":"POST","url":"/v1/files","body":{}}"#.into());
    lines.push(r#"{"custom_id":"wrong","method":"POST","url":"/v1/completions","body":{"model":"sim","prompt":"a","x":1}}"#.into());
    let file = upload(&world, "batch", &lines.join("\n")).json();
    assert_eq!((file["object"].clone(), file["filename"].clone()), (json!("file"), json!("in.jsonl")), "{file}");
    let request = json!({ "input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h" });
    let batch = world.post("/v1/batches", request).json();
    let done = finished(&world, batch["id"].as_str().expect("an id"));
    assert_eq!(done["status"], "completed", "{done}");
    assert_eq!(done["request_counts"], json!({ "total": 52, "completed": 50, "failed": 2 }));
    let content = |id: &Value| world.get(&format!("/v1/files/{}/content", id.as_str().expect("an id"))).body;
    let output = content(&done["output_file_id"]);
    let mut names: Vec<String> =
        output.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["custom_id"].to_string()).collect();
    names.sort();
    names.dedup();
    assert_eq!((output.lines().count(), names.len()), (50, 50));
    let first: Value = serde_json::from_str(output.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["response"]["status_code"], 200);
    let direct = world.post("/v1/completions", line(7)["body"].clone()).json();
    let seventh = output.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")).find(|result| result["custom_id"] == "r7");
    assert_eq!(seventh.expect("there")["response"]["body"]["choices"], direct["choices"]);
    assert_eq!(content(&done["error_file_id"]).lines().count(), 2);
}

#[test]
fn file_that_is_no_batch_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new(Config { data_folder: Some(folder.path().to_path_buf()), ..Config::default() });
    assert_eq!(upload(&world, "fine-tune", "{}").json()["error"]["param"], "purpose");
    let empty = upload(&world, "batch", "").json();
    let request = |id: &Value| json!({ "input_file_id": id, "endpoint": "/v1/completions", "completion_window": "24h" });
    assert_eq!(world.post("/v1/batches", request(&empty["id"])).json()["error"]["param"], "input_file_id");
    assert_eq!(world.post("/v1/batches", request(&json!("file-../../x"))).status, 404);
    assert_eq!(world.get("/v1/files").json()["data"].as_array().map(Vec::len), Some(1));
    let gone = Request::delete(format!("/v1/files/{}", empty["id"].as_str().expect("an id"))).body(Body::empty()).expect("a request");
    assert_eq!(world.send(gone).json()["deleted"], true);
    assert_eq!(std::fs::read_dir(folder.path().join("files")).expect("a folder").count(), 0, "nothing stays behind");
    assert_eq!(World::plain().get("/v1/files").status, 403);
}

#[test]
fn upload_that_is_refused_or_broken_off_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new(Config { data_folder: Some(folder.path().to_path_buf()), ..Config::default() });
    let file = "--X\r\ncontent-disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\r\n\r\n{}\r\n";
    let field = |name: &str, value: &str| format!("--X\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    let send = |form: String, content_type: &str| {
        world.send(Request::post("/v1/files").header("content-type", content_type).body(Body::from(form)).expect("a request"))
    };
    const FORM: &str = "multipart/form-data; boundary=X";
    for (form, content_type) in [
        (format!("{file}{}--X--\r\n", field("expires_after", "1")), FORM),
        (format!("{file}{}--X--\r\n", field("purpose", &"batch".repeat(100_000))), FORM),
        (format!("{file}--X--\r\n"), FORM),
        (file.to_string(), FORM),
        (format!("{file}{file}--X--\r\n"), FORM),
        (file.to_string(), "application/json"),
    ] {
        let answer = send(form, content_type);
        assert_eq!((answer.status, answer.json()["error"]["type"].as_str()), (400, Some("invalid_request_error")), "{}", answer.body);
        assert_eq!(std::fs::read_dir(folder.path().join("files")).expect("a folder").count(), 0, "{}", answer.body);
    }
}

#[test]
fn batch_whose_input_is_gone_has_failed() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new(Config { data_folder: Some(folder.path().to_path_buf()), ..Config::default() });
    let file = upload(&world, "batch", &line(0).to_string()).json();
    let request = json!({ "input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h" });
    let batch = world.post("/v1/batches", request).json();
    let id = batch["id"].as_str().expect("an id");
    finished(&world, id);
    // As a server finds it that is started again.
    let path = folder.path().join(format!("batches/{id}.json"));
    let kept = std::fs::read_to_string(&path).expect("kept").replace("\"completed\",", "\"in_progress\",");
    std::fs::write(&path, kept).expect("writable");
    let gone = Request::delete(format!("/v1/files/{}", file["id"].as_str().expect("an id"))).body(Body::empty()).expect("a request");
    assert_eq!(world.send(gone).status, 200);
    world.block_on(async { world.app.resume_batches() });
    assert_eq!(finished(&world, id)["status"], "failed");
}

#[test]
fn crash_between_any_two_writes_of_a_batchs_end_loses_and_repeats_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new(Config { data_folder: Some(folder.path().to_path_buf()), ..Config::default() });
    let bad = r#"{"custom_id":"bad","method":"POST","url":"/v1/files","body":{}}"#.to_string();
    let lines: Vec<String> = (0..5).map(|index| line(index).to_string()).chain([bad]).collect();
    let file = upload(&world, "batch", &lines.join("\n")).json();
    let request = json!({ "input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h" });
    let batch = world.post("/v1/batches", request).json();
    let id = batch["id"].as_str().expect("an id").to_string();
    let done = finished(&world, &id);
    let file_of = |member: &str| done[member].as_str().expect("an id").to_string();
    let (output, errors) = (file_of("output_file_id"), file_of("error_file_id"));
    let content = |id: &str| world.get(&format!("/v1/files/{id}/content")).body;
    let (output_lines, error_lines) = (content(&output), content(&errors));
    let n_requests = || world.get("/metrics").body.lines().filter(|line| line.contains("/v1/completions")).collect::<Vec<_>>().join(" ");
    let asked = n_requests();
    let place = |name: &str| folder.path().join(name);
    let object = place(&format!("batches/{id}.json"));
    let kept = std::fs::read_to_string(&object).expect("kept");
    let results = |id: &str| (place(&format!("files/{id}.jsonl")), place(&format!("files/{id}.json")));
    // How far the last writes had come: none; one file moved; and described; the other moved; and described.
    for n_done in 0..5 {
        std::fs::write(&object, kept.replace("\"completed\",", "\"finalizing\",")).expect("writable");
        for (index, (file, name)) in [(&output, "output"), (&errors, "errors")].into_iter().enumerate() {
            let (lines, described) = results(file);
            if n_done < 2 * index + 2 {
                std::fs::remove_file(described).expect("there");
            }
            if n_done < 2 * index + 1 {
                std::fs::rename(lines, place(&format!("batches/{id}.{name}"))).expect("there");
            }
        }
        world.block_on(async { world.app.resume_batches() });
        let again = finished(&world, &id);
        assert_eq!((again["status"].as_str(), again["request_counts"].clone()), (Some("completed"), done["request_counts"].clone()));
        assert_eq!((&again["output_file_id"], &again["error_file_id"]), (&done["output_file_id"], &done["error_file_id"]));
        assert_eq!((content(&output), content(&errors)), (output_lines.clone(), error_lines.clone()), "after {n_done} writes");
        assert_eq!(n_requests(), asked, "no line is asked again");
    }
    assert_eq!(world.get("/v1/files").json()["data"].as_array().map(Vec::len), Some(3), "no file is left over");
}
