"""The proxy: what clients talk to. POST /v1/completions as OpenAI's."""
import http.client
import json
import logging
import threading
import time
import uuid

from model import decode
from stage import StageError, serve


class Proxy:
    def __init__(self, options, prefill_port, decode_port):
        self.options = options
        self.ports = {"prefill": prefill_port, "decode": decode_port}

    def post(self, where, path, body):
        """(connection, response); StageError when there is none or it is not
        200."""
        c = http.client.HTTPConnection("127.0.0.1", self.ports[where],
                                       timeout=2 * self.options["timeout"])
        try:
            c.request("POST", path, json.dumps(body),
                      {"Content-Type": "application/json"})
            r = c.getresponse()
            if r.status == 200:
                return c, r
            e = json.loads(r.read())["error"]
            error = StageError(e["type"], e["message"], f"{where} server")
            error.http = r.status
        except (OSError, http.client.HTTPException) as e:
            error = StageError("PEER_UNREACHABLE", repr(e),
                               f"{where} server")
        c.close()
        raise error

    def prefill(self, request):
        c, r = self.post("prefill", "/prefill", request)
        try:
            return json.loads(r.read())
        except (OSError, ValueError, http.client.HTTPException) as e:
            raise StageError("PEER_UNREACHABLE", repr(e),
                             "prefill server") from None
        finally:
            c.close()

    def tokens(self, request, kv):
        """Yields the decode server's lines."""
        c, r = self.post("decode", "/decode", {
            "request_id": request["request_id"],
            "max_tokens": request["max_tokens"], **kv})
        try:
            while True:
                line = json.loads(r.readline() or b"{}")
                if not line:
                    raise OSError("the answer ends in the middle")
                yield line
                if line.get("done"):
                    return
        except (OSError, ValueError, http.client.HTTPException) as e:
            raise StageError("PEER_UNREACHABLE", repr(e),
                             "decode server") from None
        finally:
            c.close()

    def run_request(self, request):
        """Yields lines. Overlapped: the decode server is asked at once, with
        nothing but the name of the request, and waits for what prefill sends."""
        ask = {k: request[k] for k in ("request_id", "prompt")}
        try:
            if not self.options["overlap"]:
                yield from self.tokens(request, self.prefill(ask))
                return
            failed, ended = [], threading.Event()

            def prefill():
                try:
                    self.prefill(ask)
                except StageError as e:
                    failed.append(e)
                    # It may not have been asked yet.
                    while not ended.is_set() and not self.tell(
                            "decode", "/abort", request["request_id"]
                            ).get("aborted"):
                        ended.wait(0.05)
            t = threading.Thread(target=prefill)
            t.start()
            try:
                yield from self.tokens(request, {})
            except StageError:
                ended.set()
                t.join()
                if failed:  # the cause; what decode says follows from it
                    raise failed[0] from None
                raise
            ended.set()
            t.join()
        except StageError:
            self.tell("prefill", "/drop", request["request_id"])
            raise

    def tell(self, where, path, rid):
        """Something that the other will find out by itself, but later."""
        try:
            c, r = self.post(where, path, {"request_id": rid})
            reply = json.loads(r.read())
            c.close()
            return reply
        except (StageError, OSError, ValueError):
            return {}

    def completions(self, h, body):
        request = {"request_id": f"cmpl-{uuid.uuid4().hex[:16]}",
                   "prompt": body["prompt"],
                   "max_tokens": body.get("max_tokens", 16)}
        if not isinstance(request["prompt"], str):
            raise ValueError("prompt has to be one string")
        if type(request["max_tokens"]) is not int:
            raise ValueError("max_tokens has to be a whole number")
        began = time.perf_counter()
        lines = self.run_request(request)
        first = next(lines)
        ttft = (time.perf_counter() - began) * 1000
        tokens = [first["token"]]
        if body.get("stream"):
            h.begin_chunks("text/event-stream")
            self.event(h, request, tokens[0])
        try:
            for line in lines:
                if line.get("done"):
                    break
                tokens.append(line["token"])
                if body.get("stream"):
                    self.event(h, request, line["token"])
        except StageError as e:
            if not body.get("stream"):
                raise
            h.chunk(b"data: " + json.dumps(e.body()).encode() + b"\n\n")
            h.end_chunks()
            return None
        for _ in lines:
            pass  # prefill's end
        ms = (time.perf_counter() - began) * 1000
        logging.info("%s: %d tokens, first after %.1f ms, all after %.1f ms",
                     request["request_id"], len(tokens), ttft, ms)
        if body.get("stream"):
            h.chunk(b"data: [DONE]\n\n")
            h.end_chunks()
            return None
        return {"id": request["request_id"], "object": "text_completion",
                "choices": [{"index": 0, "text": decode(tokens),
                             "token_ids": tokens, "finish_reason": "length"}],
                "usage": {"prompt_tokens": len(request["prompt"].encode()) + 1,
                          "completion_tokens": len(tokens)},
                "kvferry": {"ttft_ms": round(ttft, 2), "ms": round(ms, 2),
                            **{k: v for k, v in line.items() if k != "done"}}}

    @staticmethod
    def event(h, request, token):
        h.chunk(b"data: " + json.dumps({
            "id": request["request_id"], "object": "text_completion",
            "choices": [{"index": 0, "text": decode([token]),
                         "token_ids": [token]}]}).encode() + b"\n\n")

    def health(self, h, body):
        return {"status": "ok", **self.ports}

    def run(self, port, ready):
        serve(port, {"/v1/completions": lambda h, b: self.completions(h, b),
                     "/health": lambda h, b: self.health(h, b)}, ready)
