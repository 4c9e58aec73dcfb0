//! `GET /openapi.json`: every route with what it takes and answers, as this worker with this model has it.
//!
//! Bounds that depend on flags or on the model (tokens, ids) are this worker's own. The shapes themselves stand in
//! `openapi/requests.rs` and `openapi/answers.rs`; a test compares them with what the routes really do.

mod answers;
mod requests;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::Value;
use utoipa::openapi::path::{
    HttpMethod, Operation, OperationBuilder, Parameter, ParameterBuilder, ParameterIn,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, InfoBuilder, ObjectBuilder, OpenApiBuilder, Paths, Ref, Required,
    ResponseBuilder, Type,
};

use super::state::ServerState;

/// Which object an error is.
#[derive(Clone, Copy)]
enum Errors {
    /// The worker's own.
    Worker,
    /// That of OpenAI's API.
    OpenAi,
}

impl Errors {
    const fn schema(self) -> &'static str {
        match self {
            Self::Worker => "WorkerError",
            Self::OpenAi => "OpenAiError",
        }
    }
}

/// Statuses that any request may be answered with: keys and origins.
const GATE: &[u16] = &[401, 403];
/// Statuses of a route that reads a body.
const READS: &[u16] = &[400, 401, 403, 413];
/// Statuses of a route that looks at the model's vocabulary.
const LOOKS: &[u16] = &[400, 401, 403, 404, 413, 500, 503];
/// Statuses of a route that generates.
const GENERATES: &[u16] = &[400, 401, 403, 404, 413, 429, 499, 500, 503, 504];
const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

/// One route.
struct Route {
    path: &'static str,
    method: HttpMethod,
    id: &'static str,
    summary: &'static str,
    /// Schema of the body.
    body: Option<&'static str>,
    parameters: Vec<Parameter>,
    /// Status of what goes well.
    status: &'static str,
    /// Schemas of what goes well, by content type.
    answers: &'static [(&'static str, &'static str)],
    /// Statuses of what does not.
    refusals: &'static [u16],
    errors: Errors,
}

/// `GET /openapi.json`.
pub async fn openapi(State(state): State<Arc<ServerState>>) -> Json<Value> {
    Json(document(&state))
}

fn document(state: &ServerState) -> Value {
    let mut paths = Paths::new();
    for route in routes() {
        let (path, method) = (route.path, route.method.clone());
        paths.add_path_operation(path, vec![method], operation(route));
    }
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    let description = "One model on one GPU. Fields that are not described pass unread.";
    let info = InfoBuilder::new()
        .title("worker-orcd")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(description))
        .build();
    let document = OpenApiBuilder::new()
        .info(info)
        .paths(paths)
        .components(Some(ComponentsBuilder::new().security_scheme("key", bearer).build()))
        .build();
    let mut document = serde_json::to_value(document).unwrap_or_default();
    let schemas = requests::schemas(state).into_iter().chain(answers::schemas());
    document["components"]["schemas"] = schemas.map(|(name, schema)| (name.to_owned(), schema)).collect();
    document
}

fn operation(route: Route) -> Operation {
    let of = |schema: &str| ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build();
    let mut operation = OperationBuilder::new()
        .operation_id(Some(route.id))
        .summary(Some(route.summary))
        .parameters(Some(route.parameters));
    if let Some(body) = route.body {
        let body = RequestBodyBuilder::new().required(Some(Required::True)).content(JSON, of(body)).build();
        operation = operation.request_body(Some(body));
    }
    let mut answer = ResponseBuilder::new().description("What was asked for.");
    for (content_type, schema) in route.answers {
        answer = answer.content(*content_type, of(schema));
    }
    operation = operation.response(route.status, answer.build());
    for &status in route.refusals {
        let mut refusal = ResponseBuilder::new().description(reason(status));
        // Probes answer with their own body whatever they say.
        let schema = match route.answers {
            [(_, schema)] if !route.refusals.contains(&401) => schema,
            _ => route.errors.schema(),
        };
        refusal = refusal.content(JSON, of(schema));
        operation = operation.response(status.to_string(), refusal.build());
    }
    if route.refusals.contains(&401) {
        let anyone = SecurityRequirement::default();
        operation = operation
            .security(anyone)
            .security(SecurityRequirement::new("key", std::iter::empty::<String>()));
    }
    operation.build()
}

const fn reason(status: u16) -> &'static str {
    match status {
        400 => "The request breaks a rule; the error names where.",
        401 => "The key is missing or wrong.",
        403 => "The request comes from a page that may not send it.",
        404 => "There is no such model.",
        409 => "A live job has this name.",
        413 => "The body is too large.",
        429 => "The queue is full; Retry-After says when to come again.",
        499 => "Cancelled.",
        500 => "A fault of the worker.",
        503 => "Loading or draining.",
        504 => "The deadline has passed.",
        _ => "Refused.",
    }
}

fn header(name: &str, schema: ObjectBuilder, description: &str) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(schema.build()))
        .build()
}

fn deadline() -> Parameter {
    let whole = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
    header("X-Deadline", whole, "Milliseconds the client is willing to wait.")
}

fn routes() -> Vec<Route> {
    [probes(), control(), execution(), texts(), openai()].into_iter().flatten().collect()
}

fn get(
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    answers: &'static [(&'static str, &'static str)],
    refusals: &'static [u16],
) -> Route {
    let (method, errors) = (HttpMethod::Get, Errors::Worker);
    Route {
        path,
        method,
        id,
        summary,
        body: None,
        parameters: vec![],
        status: "200",
        answers,
        refusals,
        errors,
    }
}

fn post(
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    body: &'static str,
    answers: &'static [(&'static str, &'static str)],
    refusals: &'static [u16],
) -> Route {
    Route { method: HttpMethod::Post, body: Some(body), ..get(path, id, summary, answers, refusals) }
}

fn probes() -> Vec<Route> {
    let info = "What routers ask a worker when it is registered.";
    vec![
        get("/health", "health", "State, model and memory.", &[(JSON, "Health")], &[503]),
        get("/ready", "ready", "Whether a request sent now would be taken.", &[(JSON, "Ready")], &[503]),
        get("/live", "live", "The process answers.", &[(JSON, "Live")], &[]),
        get("/metrics", "metrics", "Figures for Prometheus.", &[("text/plain", "Metrics")], GATE),
        get("/server_info", "server_info", info, &[(JSON, "ServerInfo")], GATE),
        get("/get_server_info", "get_server_info", info, &[(JSON, "ServerInfo")], GATE),
        get("/model_info", "model_info", info, &[(JSON, "ModelInfo")], GATE),
        get("/get_model_info", "get_model_info", info, &[(JSON, "ModelInfo")], GATE),
        get("/openapi.json", "openapi", "This document.", &[(JSON, "Document")], GATE),
    ]
}

fn control() -> Vec<Route> {
    let draining = Route {
        status: "202",
        method: HttpMethod::Post,
        ..get("/shutdown", "shutdown", "Drains and ends the process.", &[(JSON, "Draining")], GATE)
    };
    let cancelled = post(
        "/cancel",
        "cancel",
        "Ends a job, whether or not it lives.",
        "CancelRequest",
        &[(JSON, "Cancelling")],
        READS,
    );
    let abort = "Ends an answer by its id, or all of them.";
    vec![
        Route { status: "202", ..cancelled },
        post("/abort_request", "abort_request", abort, "AbortRequest", &[(JSON, "Nothing")], READS),
        draining,
    ]
}

fn execution() -> Vec<Route> {
    let summary = "Continues one prompt, as events.";
    let refusals = &[400, 401, 403, 409, 413, 429, 499, 500, 503, 504];
    let execute =
        post("/execute", "execute", summary, "ExecuteRequest", &[(EVENTS, "ExecuteEvent")], refusals);
    vec![Route { parameters: vec![deadline()], ..execute }]
}

fn texts() -> Vec<Route> {
    let (ids, text) = ("The ids of a text or of a conversation's prompt.", "The text of ids.");
    let routes = vec![
        post("/tokenize", "tokenize", ids, "TokenizeRequest", &[(JSON, "Tokens")], LOOKS),
        post("/detokenize", "detokenize", text, "DetokenizeRequest", &[(JSON, "Text")], LOOKS),
        post(
            "/apply-template",
            "apply_template",
            "The prompt of a conversation.",
            "PromptRequest",
            &[(JSON, "Prompt")],
            LOOKS,
        ),
    ];
    routes.into_iter().map(|route| Route { errors: Errors::OpenAi, ..route }).collect()
}

fn openai() -> Vec<Route> {
    let named = ParameterBuilder::new()
        .name("model")
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .schema(Some(ObjectBuilder::new().schema_type(Type::String).build()))
        .build();
    let model =
        get("/v1/models/{model}", "model", "The model by a name.", &[(JSON, "Model")], &[401, 403, 404, 503]);
    let mut routes = vec![
        get("/v1/models", "models", "The model under its names.", &[(JSON, "Models")], &[401, 403, 503]),
        Route { parameters: vec![named], ..model },
    ];
    for (path, id, summary, body, answers) in [
        (
            "/v1/completions",
            "completions",
            "Continues prompts.",
            "CompletionRequest",
            &[(JSON, "Completion"), (EVENTS, "ChunkEvent")],
        ),
        (
            "/v1/chat/completions",
            "chat_completions",
            "Answers a conversation.",
            "ChatRequest",
            &[(JSON, "ChatCompletion"), (EVENTS, "ChunkEvent")],
        ),
        (
            "/v1/responses",
            "responses",
            "Answers a conversation, as items. Nothing is stored.",
            "ResponseRequest",
            &[(JSON, "Response"), (EVENTS, "ResponseEvent")],
        ),
    ] {
        let text = ObjectBuilder::new().schema_type(Type::String);
        let name = header("X-Request-Id", text, "The client's name of the request.");
        let route = post(path, id, summary, body, answers, GENERATES);
        routes.push(Route { parameters: vec![deadline(), name], ..route });
    }
    routes.into_iter().map(|route| Route { errors: Errors::OpenAi, ..route }).collect()
}
