// The errors of the client and of webhooks: the names, codes and messages of chatjobs/errors.py.

const MAX_MESSAGE_CHARACTERS = 500;
const UNPRINTABLE = /(?!\s)[\p{C}\p{Z}]/gu;

/**
 * One line of printable text, at most 500 characters: safe to store and to log.
 * @param {string} text
 * @returns {string}
 */
function bounded(text) {
  const line = text.replace(UNPRINTABLE, "\ufffd").replace(/\s+/g, " ").trim();
  const characters = [...line];
  if (characters.length <= MAX_MESSAGE_CHARACTERS) return line;
  return `${characters.slice(0, MAX_MESSAGE_CHARACTERS - 1).join("")}…`;
}

/**
 * One thing that is wrong with an input: a JSON pointer (RFC 6901), empty for the whole input, and why.
 * @typedef {{ pointer: string, message: string }} Problem
 */

/** Something went wrong in the chat-job service. All errors of this package are of this kind. */
export class ChatJobsError extends Error {
  /** A stable word for the error, as in the service's problems (RFC 9457). @type {string} */
  static code = "internal";
  /** The message of an error that is given none. */
  static usualMessage = "Something went wrong in the chat-job service.";

  /** @param {string | null} [message] */
  constructor(message) {
    super(bounded(message || new.target.usualMessage));
  }

  /** A stable word for the error; that of its class. @returns {string} */
  get code() {
    return /** @type {typeof ChatJobsError} */ (this.constructor).code;
  }
}

/** The request is not valid; `problems` are all that were found, and the message lists them. */
export class InvalidRequest extends ChatJobsError {
  static code = "validation_failed";
  static usualMessage = "The request is not valid; correct the fields named and send it again.";

  /** @param {readonly Problem[]} problems */
  constructor(problems) {
    super(problems.map(({ pointer, message }) => (pointer ? `${pointer}: ${message}` : message)).join("; "));
    /** @type {readonly Problem[]} */
    this.problems = problems;
  }
}

/** There is no job with this id. */
export class JobNotFound extends ChatJobsError {
  static code = "job_not_found";
  static usualMessage = "There is no job with this id; look at `starter.py list`.";
}

/** There is no batch with this id. */
export class BatchNotFound extends ChatJobsError {
  static code = "batch_not_found";
  static usualMessage = "There is no batch with this id; look at `starter.py batch list`.";
}

/** The batch has ended and can no longer be changed. */
export class BatchFinished extends ChatJobsError {
  static code = "batch_finished";
  static usualMessage = "The batch has ended and can no longer be changed.";
}

/** There is no delivery with this id. */
export class DeliveryNotFound extends ChatJobsError {
  static code = "delivery_not_found";
  static usualMessage = "There is no delivery with this id; look at the deliveries of its job.";
}

/** Nothing was sent to this URL lately. */
export class EndpointNotFound extends ChatJobsError {
  static code = "endpoint_not_found";
  static usualMessage = "Nothing was sent to this URL lately; look at `starter.py endpoints`.";
}

/** There are 16 endpoints for all jobs, which is the most. */
export class TooManyEndpoints extends ChatJobsError {
  static code = "too_many_endpoints";
  static usualMessage = "There are 16 endpoints for all jobs, which is the most; delete one first.";
}

/** Events after this id were removed, as they were too old. */
export class EventsExpired extends ChatJobsError {
  static code = "events_expired";
  static usualMessage =
    "Events after this id were removed, as they were too old; go on with after=0, the oldest event that is kept.";
}

/** There is no such pause. */
export class PauseNotFound extends ChatJobsError {
  static code = "pause_not_found";
  static usualMessage = "There is no such pause; look at `starter.py limits`.";
}

/** There is no schedule with this id. */
export class ScheduleNotFound extends ChatJobsError {
  static code = "schedule_not_found";
  static usualMessage = "There is no schedule with this id.";
}

/** Another job has this id. */
export class JobIdConflict extends ChatJobsError {
  static code = "job_id_conflict";
  static usualMessage = "Another job has this id; choose a different one, or leave it out.";
}

/** The job has ended and can no longer be changed. */
export class JobFinished extends ChatJobsError {
  static code = "job_finished";
  static usualMessage = "The job has ended and can no longer be changed.";
}

/** The job is still running. */
export class JobRunning extends ChatJobsError {
  static code = "job_running";
  static usualMessage = "The job is still running; cancel it first, or wait for its end.";
}

/** The job has no text to go on from. */
export class NothingToResume extends ChatJobsError {
  static code = "nothing_to_resume";
  static usualMessage = "The job has no text to go on from; replay it.";
}

/** The content of this job was deleted. */
export class ContentDeleted extends ChatJobsError {
  static code = "content_deleted";
  static usualMessage = "The content of this job was deleted.";
}

/** This idempotency key was used with another request. */
export class IdempotencyMismatch extends ChatJobsError {
  static code = "idempotency_mismatch";
  static usualMessage = "This idempotency key was used with another request; use a new key for a new request.";
}

/** The API key (or stream token) is missing, unknown, expired or revoked. */
export class Unauthorized extends ChatJobsError {
  static code = "unauthorized";
  static usualMessage = "The API key is missing, unknown, expired or revoked.";
}

/**
 * What an ApiError knows of the response.
 * @typedef {object} ResponseFacts
 * @property {number | null} [status] the HTTP status; null if there was no response
 * @property {string | null} [reason] the code in the response
 * @property {number | null} [retryAfter] of the response's header, in milliseconds
 */

/** The service did not give the answer that was asked for. */
export class ApiError extends ChatJobsError {
  static code = "api_error";
  static usualMessage = "The service did not give the answer that was asked for.";

  /**
   * @param {string | null} [message]
   * @param {ResponseFacts} [response]
   */
  constructor(message, { status = null, reason = null, retryAfter = null } = {}) {
    super(message);
    /** The HTTP status of the response; null if there was none. @type {number | null} */
    this.status = status;
    /** The code in the response, otherwise the error's own. @type {string} */
    this.reason = reason || this.code;
    /** Milliseconds to wait, as the response asked; null if it did not. @type {number | null} */
    this.retryAfter = retryAfter;
  }
}

/** The service is not reachable or overloaded. */
export class ServiceUnavailable extends ApiError {
  static code = "service_unavailable";
  static usualMessage = "The service is not reachable or overloaded; try again in a moment.";
}

/** The service's answer is larger than this client reads. */
export class ResponseTooLarge extends ApiError {
  static code = "response_too_large";
  static usualMessage = "The service's answer is larger than this client reads.";
}

/** The events of the stream do not fit together. */
export class StreamBroken extends ApiError {
  static code = "stream_broken";
  static usualMessage = "The events of the stream do not fit together.";
}

/**
 * Why a job has no answer.
 * @typedef {object} FailureFacts
 * @property {string | null} [reason] the code of the job's error, or `cancelled`
 * @property {boolean} [retryable] whether the job may succeed when replayed
 * @property {string | null} [cause] the code of the last failure, where a limit of the job ended it
 */

/** The job ended without an answer. */
export class JobFailed extends ChatJobsError {
  static code = "job_failed";
  static usualMessage = "The job ended without an answer.";

  /**
   * @param {string | null} [message]
   * @param {FailureFacts} [failure]
   */
  constructor(message, { reason = null, retryable = false, cause = null } = {}) {
    super(message);
    /** The code of the job's error, or `cancelled`. @type {string} */
    this.reason = reason || this.code;
    /** Whether the job may succeed when replayed. @type {boolean} */
    this.retryable = retryable;
    /** The code of the last failure, where a limit of the job ended it. @type {string | null} */
    this.cause = cause;
  }
}

/** A setting is missing or wrong. */
export class ConfigurationError extends ChatJobsError {
  static code = "configuration";
  static usualMessage = "A setting is missing or wrong.";
}

/** A webhook could not be signed, verified or delivered. */
export class WebhookError extends ChatJobsError {
  static code = "webhook_error";
  static usualMessage = "A webhook could not be signed, verified or delivered.";
}

/** The webhook secret is not usable. */
export class InvalidSecret extends WebhookError {
  static code = "invalid_secret";
  static usualMessage =
    "The webhook secret is not usable: `whsec_` must be followed by base64, and it must not be empty.";
}

/** The webhook's signature, timestamp or body is not valid; do not trust it. */
export class InvalidSignature extends WebhookError {
  static code = "invalid_signature";
  static usualMessage = "The webhook's signature, timestamp or body is not valid; do not trust it.";
}

/** Webhooks may not be sent to this URL. */
export class WebhookUrlRefused extends WebhookError {
  static code = "webhook_url_refused";
  static usualMessage = "Webhooks may not be sent to this URL.";
}

// The names are written out, because bundlers rename classes.
const NAMED = {
  ...{ ChatJobsError, InvalidRequest, JobNotFound, BatchNotFound, BatchFinished, DeliveryNotFound, EndpointNotFound },
  ...{ TooManyEndpoints, EventsExpired, PauseNotFound, ScheduleNotFound, JobIdConflict, JobFinished, JobRunning, NothingToResume, ContentDeleted },
  ...{ IdempotencyMismatch, Unauthorized, ApiError, ServiceUnavailable, ResponseTooLarge, StreamBroken, JobFailed },
  ...{ ConfigurationError, WebhookError, InvalidSecret, InvalidSignature, WebhookUrlRefused },
};
for (const [name, kind] of Object.entries(NAMED)) kind.prototype.name = name;
