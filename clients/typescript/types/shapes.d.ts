/** @type {import("./decode.js").Shape<import("../types/contracts.js").Usage>} */
export const Usage: import("./decode.js").Shape<import("../types/contracts.js").Usage>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").Attempt>} */
export const Attempt: import("./decode.js").Shape<import("../types/contracts.js").Attempt>;
export const BatchStatus: ((value: any) => "failed" | "completed" | "paused" | "queued" | "in_progress" | "cancelled") & {
    title?: string;
} & {
    words: readonly ("failed" | "completed" | "paused" | "queued" | "in_progress" | "cancelled")[];
};
/** @type {import("./decode.js").Shape<import("../types/contracts.js").BatchCounts>} */
export const BatchCounts: import("./decode.js").Shape<import("../types/contracts.js").BatchCounts>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").ErrorCause>} */
export const ErrorCause: import("./decode.js").Shape<import("../types/contracts.js").ErrorCause>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").JobError>} */
export const JobError: import("./decode.js").Shape<import("../types/contracts.js").JobError>;
export const JobStatus: ((value: any) => "failed" | "completed" | "queued" | "in_progress" | "cancelled" | "incomplete") & {
    title?: string;
} & {
    words: readonly ("failed" | "completed" | "queued" | "in_progress" | "cancelled" | "incomplete")[];
};
/** @type {import("./decode.js").Shape<import("../types/contracts.js").ReplayFilter>} */
export const ReplayFilter: import("./decode.js").Shape<import("../types/contracts.js").ReplayFilter>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").Batch>} */
export const Batch: import("./decode.js").Shape<import("../types/contracts.js").Batch>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").BatchAccepted>} */
export const BatchAccepted: import("./decode.js").Shape<import("../types/contracts.js").BatchAccepted>;
export const BatchEventType: ((value: any) => "batch.completed" | "batch.cancelled" | "batch.failed") & {
    title?: string;
} & {
    words: readonly ("batch.completed" | "batch.cancelled" | "batch.failed")[];
};
/** @type {import("./decode.js").Shape<import("../types/contracts.js").BatchOutcome>} */
export const BatchOutcome: import("./decode.js").Shape<import("../types/contracts.js").BatchOutcome>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").BatchPage>} */
export const BatchPage: import("./decode.js").Shape<import("../types/contracts.js").BatchPage>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").BatchProgress>} */
export const BatchProgress: import("./decode.js").Shape<import("../types/contracts.js").BatchProgress>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").BatchWebhookEvent>} */
export const BatchWebhookEvent: import("./decode.js").Shape<import("../types/contracts.js").BatchWebhookEvent>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").CancelledEvent>} */
export const CancelledEvent: import("./decode.js").Shape<import("../types/contracts.js").CancelledEvent>;
export const Channel: ((value: any) => "content" | "reasoning") & {
    title?: string;
} & {
    words: readonly ("content" | "reasoning")[];
};
/** @type {import("./decode.js").Shape<import("../types/contracts.js").ChunkEvent>} */
export const ChunkEvent: import("./decode.js").Shape<import("../types/contracts.js").ChunkEvent>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").FunctionCall>} */
export const FunctionCall: import("./decode.js").Shape<import("../types/contracts.js").FunctionCall>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").ToolCall>} */
export const ToolCall: import("./decode.js").Shape<import("../types/contracts.js").ToolCall>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").CompleteEvent>} */
export const CompleteEvent: import("./decode.js").Shape<import("../types/contracts.js").CompleteEvent>;
export const WebhookEventType: ((value: any) => "chat.completed" | "chat.failed" | "chat.cancelled" | "chat.incomplete") & {
    title?: string;
} & {
    words: readonly ("chat.completed" | "chat.failed" | "chat.cancelled" | "chat.incomplete")[];
};
/** @type {import("./decode.js").Shape<import("../types/contracts.js").DeliveryTry>} */
export const DeliveryTry: import("./decode.js").Shape<import("../types/contracts.js").DeliveryTry>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").Delivery>} */
export const Delivery: import("./decode.js").Shape<import("../types/contracts.js").Delivery>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").Endpoint>} */
export const Endpoint: import("./decode.js").Shape<import("../types/contracts.js").Endpoint>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").EndpointList>} */
export const EndpointList: import("./decode.js").Shape<import("../types/contracts.js").EndpointList>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").ErrorEvent>} */
export const ErrorEvent: import("./decode.js").Shape<import("../types/contracts.js").ErrorEvent>;
export const FeedEventType: ((value: any) => "chat.completed" | "chat.failed" | "chat.cancelled" | "chat.incomplete" | "chat.created" | "chat.started") & {
    title?: string;
} & {
    words: readonly ("chat.completed" | "chat.failed" | "chat.cancelled" | "chat.incomplete" | "chat.created" | "chat.started")[];
};
/** @type {import("./decode.js").Shape<import("../types/contracts.js").FeedEvent>} */
export const FeedEvent: import("./decode.js").Shape<import("../types/contracts.js").FeedEvent>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").PlacedPart>} */
export const PlacedPart: import("./decode.js").Shape<import("../types/contracts.js").PlacedPart>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").TextOrigin>} */
export const TextOrigin: import("./decode.js").Shape<import("../types/contracts.js").TextOrigin>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").QueuePlace>} */
export const QueuePlace: import("./decode.js").Shape<import("../types/contracts.js").QueuePlace>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").Job>} */
export const Job: import("./decode.js").Shape<import("../types/contracts.js").Job>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").JobAccepted>} */
export const JobAccepted: import("./decode.js").Shape<import("../types/contracts.js").JobAccepted>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").JobPage>} */
export const JobPage: import("./decode.js").Shape<import("../types/contracts.js").JobPage>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").LaneWaiting>} */
export const LaneWaiting: import("./decode.js").Shape<import("../types/contracts.js").LaneWaiting>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").Pause>} */
export const Pause: import("./decode.js").Shape<import("../types/contracts.js").Pause>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").Lane>} */
export const Lane: import("./decode.js").Shape<import("../types/contracts.js").Lane>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").LaneList>} */
export const LaneList: import("./decode.js").Shape<import("../types/contracts.js").LaneList>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").OutputError>} */
export const OutputError: import("./decode.js").Shape<import("../types/contracts.js").OutputError>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").OutputResponse>} */
export const OutputResponse: import("./decode.js").Shape<import("../types/contracts.js").OutputResponse>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").OutputLine>} */
export const OutputLine: import("./decode.js").Shape<import("../types/contracts.js").OutputLine>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").PauseList>} */
export const PauseList: import("./decode.js").Shape<import("../types/contracts.js").PauseList>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").QueuedEvent>} */
export const QueuedEvent: import("./decode.js").Shape<import("../types/contracts.js").QueuedEvent>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").Redelivering>} */
export const Redelivering: import("./decode.js").Shape<import("../types/contracts.js").Redelivering>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").ReplayEstimate>} */
export const ReplayEstimate: import("./decode.js").Shape<import("../types/contracts.js").ReplayEstimate>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").ResetEvent>} */
export const ResetEvent: import("./decode.js").Shape<import("../types/contracts.js").ResetEvent>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").ScheduleRun>} */
export const ScheduleRun: import("./decode.js").Shape<import("../types/contracts.js").ScheduleRun>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").Schedule>} */
export const Schedule: import("./decode.js").Shape<import("../types/contracts.js").Schedule>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").SchedulePage>} */
export const SchedulePage: import("./decode.js").Shape<import("../types/contracts.js").SchedulePage>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").StartEvent>} */
export const StartEvent: import("./decode.js").Shape<import("../types/contracts.js").StartEvent>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").StreamToken>} */
export const StreamToken: import("./decode.js").Shape<import("../types/contracts.js").StreamToken>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").WebhookData>} */
export const WebhookData: import("./decode.js").Shape<import("../types/contracts.js").WebhookData>;
export const WebhookTestEvent: ((value: any) => "webhook.test") & {
    title?: string;
} & {
    words: readonly "webhook.test"[];
};
/** @type {import("./decode.js").Shape<import("../types/contracts.js").WebhookEvent>} */
export const WebhookEvent: import("./decode.js").Shape<import("../types/contracts.js").WebhookEvent>;
/** @type {import("./decode.js").Shape<import("../types/contracts.js").WebhookTest>} */
export const WebhookTest: import("./decode.js").Shape<import("../types/contracts.js").WebhookTest>;
