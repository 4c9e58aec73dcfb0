# Thin names for cargo commands. `make demo` and `make test` are the two that matter; both install what is missing
# when they may, and otherwise say what to install.

CARGO ?= cargo
PROMPT ?=
MODEL ?=

# Everything that runs kernels or compiles them sees the same NVRTC: the caller's, or the one `make setup` fetched.
with_nvrtc = . .ci/nvrtc-path

.PHONY: demo test test-clients test-cuda lint setup setup-gpu

demo: setup-gpu ## the bundled model writes a haiku on the best device here
	@$(with_nvrtc); $(CARGO) run --release --locked -- demo $(if $(PROMPT),--prompt "$(PROMPT)") $(if $(MODEL),--model "$(MODEL)")

test: setup ## everything CI runs
	@$(with_nvrtc); CARGO="$(CARGO)" .ci/test

test-clients: ## other people's clients, a browser and routers against the built binary
	@.ci/clients

test-cuda: setup ## the same tests, and those that need an NVIDIA GPU
	@$(with_nvrtc); CARGO="$(CARGO)" .ci/test --cuda

lint: ## format, clippy, documentation, dependencies
	@CARGO="$(CARGO)" .ci/lint

setup: ## the Vulkan driver and CUDA's run-time compiler
	@.ci/setup vulkan nvrtc cxx

setup-gpu:
	@.ci/setup vulkan $$(.ci/setup --has-nvidia && echo nvrtc)
