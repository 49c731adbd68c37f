// The server, over gRPC-Web at the page's own address.
import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { missed, reached } from "./connection";
import { showAlert } from "./dom";
import { JobService } from "./gen/tessera/v1/job_service_pb";
import { ModelService } from "./gen/tessera/v1/model_service_pb";

const KEY = "tessera-token";

/** Address of the server: that of the page, which may be under a path of a proxy. Without a slash at the end. */
export const base = new URL(".", location.href).href.replace(/\/$/, "");

/** The bearer token of this tab, if the server has asked for one. */
export function token(): string | null {
  return sessionStorage.getItem(KEY);
}

/** Stores a token for this tab. */
export function setToken(value: string): void {
  sessionStorage.setItem(KEY, value);
}

/** Headers of plain HTTP requests. */
export function headers(): Record<string, string> {
  const value = token();
  return value ? { authorization: `Bearer ${value}` } : {};
}

const authorize: Interceptor = (next) => (request) => {
  for (const [name, value] of Object.entries(headers())) request.header.set(name, value);
  return next(request);
};

const observe: Interceptor = (next) => async (request) => {
  try {
    const answer = await next(request);
    reached();
    return answer;
  } catch (error) {
    if (isAway(error)) missed();
    throw error;
  }
};

const transport = createGrpcWebTransport({ baseUrl: base, interceptors: [observe, authorize] });

export const jobs = createClient(JobService, transport);
export const models = createClient(ModelService, transport);

/** Id of a job's resource name. */
export function idOf(name: string): string {
  return name.replace(/^jobs\//, "");
}

/** Address of a file of a job's picture. */
export function fileUrl(id: string, file: string): string {
  return `${base}/jobs/${id}/${file}`;
}

/** Fetches from the server over plain HTTP, with the token. */
export function fetchFile(url: string, init: RequestInit = {}): Promise<Response> {
  return fetch(url, { ...init, headers: { ...headers(), ...init.headers } });
}

/** True if the server could not be reached. */
export function isAway(error: unknown): boolean {
  return [Code.Unavailable, Code.Unknown].includes(ConnectError.from(error).code);
}

/** Shows an error, unless it is that the server does not answer, which the page shows by itself (connection.ts). */
export function report(error: unknown): void {
  if (isAway(error)) missed();
  else showAlert(errorMessage(error));
}

/** True if a later attempt may succeed. */
export function isTransient(error: unknown): boolean {
  const { code } = ConnectError.from(error);
  return [Code.Unavailable, Code.Unknown, Code.Aborted, Code.Internal, Code.DeadlineExceeded].includes(code);
}

/** Text of an error for people. */
export function errorMessage(error: unknown): string {
  const { code, rawMessage } = ConnectError.from(error);
  const said = rawMessage ? `${rawMessage.charAt(0).toUpperCase()}${rawMessage.slice(1)}` : "";
  switch (code) {
    case Code.Unavailable:
    case Code.Unknown:
      return "The server does not answer.";
    case Code.ResourceExhausted:
      return `The server has no room for this now. ${said}.`;
    case Code.NotFound:
      return "This picture is not on the server any more.";
    case Code.Unauthenticated:
      return `The server wants another token. ${said}.`;
    case Code.Internal:
      return "The server failed; its log says why.";
    default:
      return `${said || "Something went wrong"}.`;
  }
}
