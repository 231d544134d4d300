//! The tables, as Diesel sees them: written by the test that compares this file with the migrations.
//!
//! `UPDATE_SCHEMA=1 cargo nextest run --test suite schema_file`
#![expect(missing_docs, reason = "the migrations describe the tables")]

diesel::table! {
    api_keys (tenant_id, id) {
        tenant_id -> Uuid,
        id -> Uuid,
        #[max_length = 100]
        name -> Varchar,
        #[max_length = 20]
        prefix -> Varchar,
        secret_hash -> Bytea,
        scopes -> Array<Text>,
        expires_at -> Nullable<Timestamptz>,
        last_used_at -> Nullable<Timestamptz>,
        version -> Int8,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    contact_ids (tenant_id, key) {
        tenant_id -> Uuid,
        key -> Text,
        contact_id -> Uuid,
        wa_id -> Text,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    contact_links (tenant_id, lid, phone) {
        tenant_id -> Uuid,
        lid -> Text,
        phone -> Text,
        because -> Text,
        denied_at -> Nullable<Timestamptz>,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    contact_merges (tenant_id, id) {
        tenant_id -> Uuid,
        id -> Uuid,
        kept_id -> Uuid,
        merged_id -> Uuid,
        because -> Text,
        keys -> Array<Text>,
        kept -> Jsonb,
        merged -> Jsonb,
        at -> Timestamptz,
        undone_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    contacts (tenant_id, id) {
        tenant_id -> Uuid,
        id -> Uuid,
        #[max_length = 20]
        phone -> Nullable<Varchar>,
        lid -> Nullable<Text>,
        name -> Nullable<Text>,
        push_name -> Nullable<Text>,
        name_key -> Nullable<Text>,
        push_name_key -> Nullable<Text>,
        tags -> Array<Text>,
        notes -> Nullable<Text>,
        last_seen_at -> Nullable<Timestamptz>,
        push_name_at -> Nullable<Timestamptz>,
        merged_into -> Nullable<Uuid>,
        erased_at -> Nullable<Timestamptz>,
        version -> Int8,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    conversation_participants (session_id, chat_id, person) {
        tenant_id -> Uuid,
        session_id -> Uuid,
        chat_id -> Text,
        person -> Text,
        wa_id -> Text,
        role -> Text,
        told_at -> Timestamptz,
        left_at -> Nullable<Timestamptz>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    conversations (tenant_id, id) {
        tenant_id -> Uuid,
        id -> Uuid,
        session_id -> Uuid,
        kind -> Text,
        contact_id -> Nullable<Uuid>,
        chat_id -> Text,
        name -> Nullable<Text>,
        last_message_id -> Nullable<Uuid>,
        last_message_at -> Nullable<Timestamptz>,
        last_waha_id -> Nullable<Text>,
        message_count -> Int8,
        unread_count -> Int4,
        last_read_at -> Nullable<Timestamptz>,
        is_active -> Bool,
        version -> Int8,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    directory_generation (only_row) {
        only_row -> Bool,
        generation -> Int8,
    }
}

diesel::table! {
    early_acks (session_id, waha_message_id) {
        tenant_id -> Uuid,
        session_id -> Uuid,
        #[max_length = 255]
        waha_message_id -> Varchar,
        ack -> Int2,
        at -> Timestamptz,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    erasures (tenant_id, id) {
        tenant_id -> Uuid,
        id -> Uuid,
        contact_id -> Uuid,
        #[max_length = 100]
        requested_by -> Varchar,
        status -> Text,
        stage -> Text,
        place -> Nullable<Jsonb>,
        due_at -> Timestamptz,
        messages -> Int8,
        cancelled -> Int8,
        events -> Int8,
        files -> Int8,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        finished_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    event_cursors (name) {
        name -> Text,
        xact -> Int8,
        seq -> Int8,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    events (tenant_id, id) {
        tenant_id -> Uuid,
        id -> Uuid,
        seq -> Int8,
        xact -> Int8,
        #[sql_name = "type"]
        type_ -> Text,
        at -> Timestamptz,
        session_id -> Nullable<Uuid>,
        message_id -> Nullable<Uuid>,
        data -> Text,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    foreign_id_endpoints (engine, waha_version, endpoint) {
        engine -> Text,
        waha_version -> Text,
        endpoint -> Text,
        noted_at -> Timestamptz,
    }
}

diesel::table! {
    gap_fills (tenant_id, session_id) {
        tenant_id -> Uuid,
        session_id -> Uuid,
        due_at -> Nullable<Timestamptz>,
        because -> Text,
        asked -> Int8,
        taken -> Int8,
        waha_server_id -> Uuid,
        working_since -> Nullable<Timestamptz>,
        server_started -> Nullable<Int8>,
        probed_at -> Nullable<Timestamptz>,
        filled_until -> Nullable<Timestamptz>,
        reread_from -> Nullable<Timestamptz>,
        lease_until -> Nullable<Timestamptz>,
        began_at -> Nullable<Timestamptz>,
        fill_from -> Nullable<Timestamptz>,
        fill_until -> Nullable<Timestamptz>,
        cursor_since -> Nullable<Timestamptz>,
        cursor_offset -> Int8,
        cursor_after -> Nullable<Int8>,
        found -> Int8,
        failures -> Int4,
        filled_at -> Nullable<Timestamptz>,
        by_webhook -> Int8,
        by_read_back -> Int8,
        recent_by_webhook -> Int8,
        recent_by_read_back -> Int8,
        counted_until -> Timestamptz,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    group_subjects (session_id, chat_id) {
        tenant_id -> Uuid,
        session_id -> Uuid,
        chat_id -> Text,
        subject -> Nullable<Text>,
        joined -> Bool,
        told_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    idempotency_keys (tenant_id, operation, key) {
        tenant_id -> Uuid,
        operation -> Text,
        #[max_length = 255]
        key -> Varchar,
        fingerprint -> Bytea,
        resource_id -> Uuid,
        status_code -> Int2,
        response -> Bytea,
        sealed -> Bool,
        created_at -> Timestamptz,
        expires_at -> Timestamptz,
    }
}

diesel::table! {
    inbound_dead_letters (tenant_id, id) {
        tenant_id -> Uuid,
        id -> Uuid,
        session_id -> Uuid,
        waha_server_id -> Uuid,
        received_at -> Timestamptz,
        event -> Nullable<Text>,
        reason -> Text,
        cause -> Text,
        body -> Text,
        attempts -> Int4,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    known_chats (session_id, chat_id) {
        tenant_id -> Uuid,
        session_id -> Uuid,
        chat_id -> Text,
        first_outbound_at -> Nullable<Timestamptz>,
        first_inbound_at -> Nullable<Timestamptz>,
        last_inbound_at -> Nullable<Timestamptz>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    lane_sends (session_id, at, id) {
        tenant_id -> Uuid,
        session_id -> Uuid,
        id -> Int8,
        at -> Timestamptz,
        new_chat -> Bool,
    }
}

diesel::table! {
    lanes (session_id) {
        tenant_id -> Uuid,
        session_id -> Uuid,
        waha_server_id -> Uuid,
        ready_at -> Nullable<Timestamptz>,
        in_flight -> Nullable<Uuid>,
        fence -> Int8,
        claimed_fence -> Int8,
        lease_until -> Nullable<Timestamptz>,
        next_slot_at -> Timestamptz,
        stopped_because -> Nullable<Text>,
        queued -> Int4,
        min_gap_ms -> Int4,
        jitter_ms -> Int4,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        per_minute -> Nullable<Int4>,
        per_hour -> Nullable<Int4>,
        per_day -> Nullable<Int4>,
        new_chats_per_day -> Nullable<Int4>,
        warm_up -> Nullable<Jsonb>,
        working_since -> Nullable<Timestamptz>,
        typing -> Bool,
        windows -> Nullable<Jsonb>,
        check_numbers -> Bool,
        restricted_until -> Nullable<Timestamptz>,
        unacked -> Int4,
        last_send_at -> Nullable<Timestamptz>,
        tenant_paused_at -> Nullable<Timestamptz>,
        #[max_length = 200]
        tenant_pause_reason -> Nullable<Varchar>,
        paused_because -> Nullable<Text>,
        restarted_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    lid_lookups (tenant_id, contact_id) {
        tenant_id -> Uuid,
        contact_id -> Uuid,
        due_at -> Timestamptz,
        misses -> Int4,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    media (tenant_id, id) {
        tenant_id -> Uuid,
        id -> Uuid,
        #[max_length = 255]
        mime_type -> Varchar,
        #[max_length = 255]
        filename -> Nullable<Varchar>,
        size -> Int8,
        sha256 -> Bytea,
        storage_key -> Text,
        source_url -> Nullable<Text>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        ready_at -> Nullable<Timestamptz>,
        deleted_at -> Nullable<Timestamptz>,
        purged_at -> Nullable<Timestamptz>,
        width -> Nullable<Int4>,
        height -> Nullable<Int4>,
        thumbnail_size -> Nullable<Int8>,
        erasure_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    media_fetches (tenant_id, message_id) {
        tenant_id -> Uuid,
        message_id -> Uuid,
        session_id -> Uuid,
        #[max_length = 255]
        waha_message_id -> Varchar,
        chat_id -> Text,
        url -> Nullable<Text>,
        mime_type -> Nullable<Text>,
        filename -> Nullable<Text>,
        attempts -> Int4,
        excused -> Int4,
        gone -> Int4,
        due_at -> Timestamptz,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    message_edits (session_id, waha_message_id, edit_id) {
        tenant_id -> Uuid,
        session_id -> Uuid,
        #[max_length = 255]
        waha_message_id -> Varchar,
        #[max_length = 255]
        edit_id -> Varchar,
        body -> Nullable<Text>,
        edited_at -> Timestamptz,
        reported_at -> Timestamptz,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    message_reactions (session_id, waha_message_id, person) {
        tenant_id -> Uuid,
        session_id -> Uuid,
        #[max_length = 255]
        waha_message_id -> Varchar,
        person -> Text,
        emoji -> Text,
        reacted_at -> Timestamptz,
        reported_at -> Timestamptz,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    message_revocations (session_id, waha_message_id) {
        tenant_id -> Uuid,
        session_id -> Uuid,
        #[max_length = 255]
        waha_message_id -> Varchar,
        revoked_at -> Timestamptz,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    message_search (tenant_id, message_id) {
        tenant_id -> Uuid,
        message_id -> Uuid,
        session_id -> Uuid,
        created_at -> Timestamptz,
        document -> Text,
    }
}

diesel::table! {
    message_search_backlog (only_row) {
        only_row -> Bool,
        last_tenant -> Uuid,
        last_id -> Uuid,
        ended_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    message_transitions (tenant_id, message_id, id) {
        tenant_id -> Uuid,
        message_id -> Uuid,
        id -> Int8,
        status -> Text,
        at -> Timestamptz,
        cause -> Text,
        attempt -> Nullable<Int4>,
    }
}

diesel::table! {
    messages (tenant_id, id) {
        tenant_id -> Uuid,
        id -> Uuid,
        session_id -> Uuid,
        seq -> Int8,
        direction -> Text,
        status -> Text,
        priority -> Int2,
        #[max_length = 50]
        message_type -> Varchar,
        chat_id -> Text,
        #[max_length = 20]
        to_msisdn -> Nullable<Varchar>,
        #[max_length = 20]
        from_msisdn -> Nullable<Varchar>,
        body -> Nullable<Text>,
        media_url -> Nullable<Text>,
        reply_to -> Nullable<Uuid>,
        metadata -> Jsonb,
        raw_payload -> Nullable<Jsonb>,
        #[max_length = 255]
        waha_message_id -> Nullable<Varchar>,
        ack -> Nullable<Int2>,
        attempts -> Int4,
        attempt_state -> Text,
        worker_deaths -> Int2,
        doubts -> Int2,
        error_code -> Nullable<Text>,
        error_message -> Nullable<Text>,
        scheduled_at -> Nullable<Timestamptz>,
        expires_at -> Nullable<Timestamptz>,
        handed_over_at -> Nullable<Timestamptz>,
        sent_at -> Nullable<Timestamptz>,
        delivered_at -> Nullable<Timestamptz>,
        read_at -> Nullable<Timestamptz>,
        played_at -> Nullable<Timestamptz>,
        failed_at -> Nullable<Timestamptz>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
        content -> Nullable<Jsonb>,
        #[max_length = 255]
        client_reference -> Nullable<Varchar>,
        pool_id -> Nullable<Uuid>,
        held_because -> Nullable<Text>,
        requeued -> Bool,
        resends -> Int2,
        attempts_before -> Int4,
        edited_at -> Nullable<Timestamptz>,
        revoked_at -> Nullable<Timestamptz>,
        source -> Nullable<Text>,
        occurred_at -> Nullable<Timestamptz>,
        sender_id -> Nullable<Text>,
        sender_alternative_id -> Nullable<Text>,
        sender_name -> Nullable<Text>,
        backfilled -> Bool,
        delivery_inferred -> Bool,
        #[max_length = 255]
        quoted_waha_id -> Nullable<Varchar>,
        edits -> Int4,
        original_body -> Nullable<Text>,
        is_stub -> Bool,
        erased_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    number_checks (tenant_id, phone) {
        tenant_id -> Uuid,
        #[max_length = 20]
        phone -> Varchar,
        registered -> Bool,
        chat_id -> Nullable<Text>,
        checked_at -> Timestamptz,
        expires_at -> Timestamptz,
    }
}

diesel::table! {
    operator_alarms (id) {
        id -> Uuid,
        kind -> Text,
        engine -> Nullable<Text>,
        since -> Timestamptz,
        ended_at -> Nullable<Timestamptz>,
        details -> Jsonb,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    platform_keys (id) {
        id -> Uuid,
        #[max_length = 100]
        name -> Varchar,
        #[max_length = 20]
        prefix -> Varchar,
        secret_hash -> Bytea,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    poll_votes (session_id, waha_message_id, person) {
        tenant_id -> Uuid,
        session_id -> Uuid,
        #[max_length = 255]
        waha_message_id -> Varchar,
        person -> Text,
        options -> Array<Text>,
        voted_at -> Timestamptz,
        reported_at -> Timestamptz,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    retention_postponed (tenant_id, message_id) {
        tenant_id -> Uuid,
        message_id -> Uuid,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    retention_progress (tenant_id, kind) {
        tenant_id -> Uuid,
        kind -> Text,
        at -> Timestamptz,
        message_id -> Uuid,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    sender_pool_recipients (pool_id, chat_id) {
        tenant_id -> Uuid,
        pool_id -> Uuid,
        chat_id -> Text,
        session_id -> Uuid,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    sender_pool_sessions (pool_id, session_id) {
        tenant_id -> Uuid,
        pool_id -> Uuid,
        session_id -> Uuid,
        created_at -> Timestamptz,
        chosen_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    sender_pools (tenant_id, id) {
        tenant_id -> Uuid,
        id -> Uuid,
        #[max_length = 100]
        name -> Varchar,
        version -> Int8,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    session_transitions (session_id, id) {
        tenant_id -> Uuid,
        session_id -> Uuid,
        id -> Int8,
        at -> Timestamptz,
        status -> Text,
        waha_status -> Text,
        #[max_length = 200]
        cause -> Varchar,
        #[max_length = 100]
        actor -> Varchar,
    }
}

diesel::table! {
    session_vitals (tenant_id, session_id) {
        tenant_id -> Uuid,
        session_id -> Uuid,
        last_inbound_at -> Nullable<Timestamptz>,
        last_ack_at -> Nullable<Timestamptz>,
        last_call_at -> Nullable<Timestamptz>,
        failed_calls -> Int4,
        first_sign_at -> Nullable<Timestamptz>,
        signs -> Int4,
        longest_gap_s -> Double,
        seen -> Text,
        watched_since -> Nullable<Timestamptz>,
        worked_until -> Nullable<Timestamptz>,
        failed_at -> Nullable<Timestamptz>,
        alarm_id -> Nullable<Uuid>,
        verdict -> Text,
        verdict_since -> Timestamptz,
        evidence -> Jsonb,
        probe_at -> Nullable<Timestamptz>,
        probed_at -> Nullable<Timestamptz>,
        failed_probes -> Int4,
        reported_at -> Nullable<Timestamptz>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    spool (id) {
        id -> Int8,
        tenant_id -> Uuid,
        session_id -> Uuid,
        waha_server_id -> Uuid,
        received_at -> Timestamptz,
        body -> Text,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    tenants (id) {
        id -> Uuid,
        #[max_length = 100]
        name -> Varchar,
        status -> Text,
        description -> Nullable<Text>,
        settings -> Jsonb,
        version -> Int8,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
        max_sessions -> Nullable<Int4>,
    }
}

diesel::table! {
    users (tenant_id, id) {
        tenant_id -> Uuid,
        id -> Uuid,
        #[max_length = 255]
        email -> Varchar,
        password_hash -> Text,
        #[max_length = 50]
        first_name -> Varchar,
        #[max_length = 50]
        last_name -> Varchar,
        role -> Text,
        is_active -> Bool,
        last_login_at -> Nullable<Timestamptz>,
        preferences -> Jsonb,
        version -> Int8,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    waha_servers (id) {
        id -> Uuid,
        #[max_length = 100]
        name -> Varchar,
        base_url -> Text,
        api_key_sealed -> Bytea,
        engine -> Text,
        capacity -> Int4,
        sessions -> Int4,
        draining -> Bool,
        health -> Text,
        waha_version -> Nullable<Text>,
        start_timestamp -> Nullable<Int8>,
        last_seen_at -> Nullable<Timestamptz>,
        poll_at -> Nullable<Timestamptz>,
        version -> Int8,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
        breaker_open_until -> Nullable<Timestamptz>,
        breaker_failures -> Int4,
        breaker_trial_at -> Nullable<Timestamptz>,
        labels -> Array<Text>,
        #[max_length = 100]
        storage_group -> Nullable<Varchar>,
        limitations -> Array<Text>,
        reported_engine -> Nullable<Text>,
        unreachable_since -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    waha_sessions (tenant_id, id) {
        tenant_id -> Uuid,
        id -> Uuid,
        #[max_length = 100]
        name -> Varchar,
        #[max_length = 255]
        external_session_id -> Varchar,
        waha_server_id -> Uuid,
        status -> Text,
        status_at -> Timestamptz,
        desired -> Text,
        engine -> Text,
        webhook_key_sealed -> Bytea,
        #[max_length = 20]
        phone -> Nullable<Varchar>,
        push_name -> Nullable<Text>,
        pacing -> Jsonb,
        config -> Jsonb,
        metadata -> Jsonb,
        last_activity_at -> Nullable<Timestamptz>,
        error_message -> Nullable<Text>,
        qr_shown -> Int2,
        qr_expires_at -> Nullable<Timestamptz>,
        reconcile_at -> Nullable<Timestamptz>,
        reconcile_lease -> Nullable<Timestamptz>,
        reconcile_failures -> Int4,
        version -> Int8,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
        restart_wanted_at -> Nullable<Timestamptz>,
        windows -> Nullable<Jsonb>,
        check_numbers -> Bool,
        restriction_kind -> Nullable<Text>,
        restriction_since -> Nullable<Timestamptz>,
        restriction_until -> Nullable<Timestamptz>,
        waha_status -> Text,
        waha_status_since -> Timestamptz,
        observations -> Int8,
        outage_shown_at -> Nullable<Timestamptz>,
        starting_since -> Nullable<Timestamptz>,
        start_queued_at -> Nullable<Timestamptz>,
        pairing -> Bool,
        paired_at -> Nullable<Timestamptz>,
        restarts -> Array<Timestamptz>,
        failure_restarted -> Bool,
        logout_wanted_at -> Nullable<Timestamptz>,
        restart_by_tenant -> Bool,
        removed_at -> Nullable<Timestamptz>,
        move_to -> Nullable<Uuid>,
        move_began_at -> Nullable<Timestamptz>,
        needs_rescan -> Bool,
        labels -> Array<Text>,
        proxy -> Nullable<Jsonb>,
        proxy_sealed -> Nullable<Bytea>,
        pairing_step -> Nullable<Text>,
        qr_reported_at -> Nullable<Timestamptz>,
        working_from -> Nullable<Timestamptz>,
        pairing_asks -> Int2,
        pairing_asks_since -> Nullable<Timestamptz>,
        previous_webhook_key_sealed -> Nullable<Bytea>,
        previous_webhook_key_until -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    webhook_attempts (tenant_id, id) {
        tenant_id -> Uuid,
        id -> Uuid,
        delivery_id -> Uuid,
        endpoint_id -> Uuid,
        event_id -> Uuid,
        attempt -> Int4,
        at -> Timestamptz,
        duration_ms -> Int4,
        response_status -> Nullable<Int2>,
        error -> Nullable<Text>,
        response_body -> Nullable<Text>,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    webhook_deliveries (tenant_id, id) {
        tenant_id -> Uuid,
        id -> Uuid,
        endpoint_id -> Uuid,
        event_id -> Uuid,
        status -> Text,
        attempts -> Int4,
        attempts_before -> Int4,
        next_attempt_at -> Timestamptz,
        claimed_until -> Nullable<Timestamptz>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    webhook_endpoints (tenant_id, id) {
        tenant_id -> Uuid,
        id -> Uuid,
        url -> Text,
        event_types -> Array<Text>,
        description -> Nullable<Text>,
        enabled -> Bool,
        disabled_because -> Nullable<Text>,
        secret_sealed -> Bytea,
        failing_since -> Nullable<Timestamptz>,
        version -> Int8,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
    }
}

diesel::joinable!(api_keys -> tenants (tenant_id));
diesel::joinable!(contact_links -> tenants (tenant_id));
diesel::joinable!(contacts -> tenants (tenant_id));
diesel::joinable!(erasures -> tenants (tenant_id));
diesel::joinable!(events -> tenants (tenant_id));
diesel::joinable!(lanes -> waha_servers (waha_server_id));
diesel::joinable!(media -> tenants (tenant_id));
diesel::joinable!(number_checks -> tenants (tenant_id));
diesel::joinable!(retention_progress -> tenants (tenant_id));
diesel::joinable!(sender_pools -> tenants (tenant_id));
diesel::joinable!(users -> tenants (tenant_id));
diesel::joinable!(waha_sessions -> tenants (tenant_id));
diesel::joinable!(webhook_endpoints -> tenants (tenant_id));

diesel::allow_tables_to_appear_in_same_query!(
    api_keys,
    contact_ids,
    contact_links,
    contact_merges,
    contacts,
    conversation_participants,
    conversations,
    directory_generation,
    early_acks,
    erasures,
    event_cursors,
    events,
    foreign_id_endpoints,
    gap_fills,
    group_subjects,
    idempotency_keys,
    inbound_dead_letters,
    known_chats,
    lane_sends,
    lanes,
    lid_lookups,
    media,
    media_fetches,
    message_edits,
    message_reactions,
    message_revocations,
    message_search,
    message_search_backlog,
    message_transitions,
    messages,
    number_checks,
    operator_alarms,
    platform_keys,
    poll_votes,
    retention_postponed,
    retention_progress,
    sender_pool_recipients,
    sender_pool_sessions,
    sender_pools,
    session_transitions,
    session_vitals,
    spool,
    tenants,
    users,
    waha_servers,
    waha_sessions,
    webhook_attempts,
    webhook_deliveries,
    webhook_endpoints,
);
