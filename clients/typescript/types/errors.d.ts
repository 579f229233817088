/**
 * One thing that is wrong with an input: a JSON pointer (RFC 6901), empty for the whole input, and why.
 * @typedef {{ pointer: string, message: string }} Problem
 */
/** Something went wrong in the chat-job service. All errors of this package are of this kind. */
export class ChatJobsError extends Error {
    /** A stable word for the error, as in the service's problems (RFC 9457). @type {string} */
    static code: string;
    /** The message of an error that is given none. */
    static usualMessage: string;
    /** @param {string | null} [message] */
    constructor(message?: string | null);
    /** A stable word for the error; that of its class. @returns {string} */
    get code(): string;
}
/** The request is not valid; `problems` are all that were found, and the message lists them. */
export class InvalidRequest extends ChatJobsError {
    /** @param {readonly Problem[]} problems */
    constructor(problems: readonly Problem[]);
    /** @type {readonly Problem[]} */
    problems: readonly Problem[];
}
/** There is no job with this id. */
export class JobNotFound extends ChatJobsError {
}
/** There is no batch with this id. */
export class BatchNotFound extends ChatJobsError {
}
/** The batch has ended and can no longer be changed. */
export class BatchFinished extends ChatJobsError {
}
/** There is no delivery with this id. */
export class DeliveryNotFound extends ChatJobsError {
}
/** Nothing was sent to this URL lately. */
export class EndpointNotFound extends ChatJobsError {
}
/** There are 16 endpoints for all jobs, which is the most. */
export class TooManyEndpoints extends ChatJobsError {
}
/** Events after this id were removed, as they were too old. */
export class EventsExpired extends ChatJobsError {
}
/** There is no such pause. */
export class PauseNotFound extends ChatJobsError {
}
/** There is no schedule with this id. */
export class ScheduleNotFound extends ChatJobsError {
}
/** Another job has this id. */
export class JobIdConflict extends ChatJobsError {
}
/** The job has ended and can no longer be changed. */
export class JobFinished extends ChatJobsError {
}
/** The job is still running. */
export class JobRunning extends ChatJobsError {
}
/** The job has no text to go on from. */
export class NothingToResume extends ChatJobsError {
}
/** The content of this job was deleted. */
export class ContentDeleted extends ChatJobsError {
}
/** This idempotency key was used with another request. */
export class IdempotencyMismatch extends ChatJobsError {
}
/** The API key (or stream token) is missing, unknown, expired or revoked. */
export class Unauthorized extends ChatJobsError {
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
    /**
     * @param {string | null} [message]
     * @param {ResponseFacts} [response]
     */
    constructor(message?: string | null, { status, reason, retryAfter }?: ResponseFacts);
    /** The HTTP status of the response; null if there was none. @type {number | null} */
    status: number | null;
    /** The code in the response, otherwise the error's own. @type {string} */
    reason: string;
    /** Milliseconds to wait, as the response asked; null if it did not. @type {number | null} */
    retryAfter: number | null;
}
/** The service is not reachable or overloaded. */
export class ServiceUnavailable extends ApiError {
}
/** The service's answer is larger than this client reads. */
export class ResponseTooLarge extends ApiError {
}
/** The events of the stream do not fit together. */
export class StreamBroken extends ApiError {
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
    /**
     * @param {string | null} [message]
     * @param {FailureFacts} [failure]
     */
    constructor(message?: string | null, { reason, retryable, cause }?: FailureFacts);
    /** The code of the job's error, or `cancelled`. @type {string} */
    reason: string;
    /** Whether the job may succeed when replayed. @type {boolean} */
    retryable: boolean;
}
/** A setting is missing or wrong. */
export class ConfigurationError extends ChatJobsError {
}
/** A webhook could not be signed, verified or delivered. */
export class WebhookError extends ChatJobsError {
}
/** The webhook secret is not usable. */
export class InvalidSecret extends WebhookError {
}
/** The webhook's signature, timestamp or body is not valid; do not trust it. */
export class InvalidSignature extends WebhookError {
}
/** Webhooks may not be sent to this URL. */
export class WebhookUrlRefused extends WebhookError {
}
/**
 * One thing that is wrong with an input: a JSON pointer (RFC 6901), empty for the whole input, and why.
 */
export type Problem = {
    pointer: string;
    message: string;
};
/**
 * What an ApiError knows of the response.
 */
export type ResponseFacts = {
    /**
     * the HTTP status; null if there was no response
     */
    status?: number | null | undefined;
    /**
     * the code in the response
     */
    reason?: string | null | undefined;
    /**
     * of the response's header, in milliseconds
     */
    retryAfter?: number | null | undefined;
};
/**
 * Why a job has no answer.
 */
export type FailureFacts = {
    /**
     * the code of the job's error, or `cancelled`
     */
    reason?: string | null | undefined;
    /**
     * whether the job may succeed when replayed
     */
    retryable?: boolean | undefined;
    /**
     * the code of the last failure, where a limit of the job ended it
     */
    cause?: string | null | undefined;
};
