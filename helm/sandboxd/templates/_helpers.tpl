{{- define "sandboxd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "sandboxd.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "sandboxd.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "sandboxd.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "sandboxd.instance" -}}
{{- default .Release.Name .Values.instance | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Names of the Secrets: the given one, or the one that the preparing hook makes. */}}
{{- define "sandboxd.secret.agentAuthority" -}}
{{- default (printf "%s-agent-authority" (include "sandboxd.fullname" .)) .Values.keys.agentAuthority.existingSecret -}}
{{- end -}}
{{- define "sandboxd.secret.signing" -}}
{{- default (printf "%s-signing" (include "sandboxd.fullname" .)) .Values.keys.signing.existingSecret -}}
{{- end -}}
{{- define "sandboxd.secret.tokenTrust" -}}
{{- default (printf "%s-token-trust" (include "sandboxd.fullname" .)) .Values.keys.tokenTrust.existingSecret -}}
{{- end -}}
{{- define "sandboxd.secret.auditTrust" -}}
{{- default (printf "%s-audit-trust" (include "sandboxd.fullname" .)) .Values.keys.auditTrust.existingSecret -}}
{{- end -}}
{{- define "sandboxd.secret.apiKeys" -}}
{{- default (printf "%s-api-keys" (include "sandboxd.fullname" .)) .Values.apiKeys.existingSecret -}}
{{- end -}}
{{/* Where serve keeps the accounts that pull clients' images; empty where it makes none. */}}
{{- define "sandboxd.secret.imagePulls" -}}
{{- with .Values.keptImages -}}
{{- if and .registry (eq .kind "harbor") .harbor.pullAccounts -}}{{ printf "%s-image-pulls" (include "sandboxd.fullname" $) }}{{- end -}}
{{- end -}}
{{- end -}}
{{- define "sandboxd.secret.callers" -}}
{{- default (printf "%s-callers" (include "sandboxd.fullname" .)) .Values.callers.existingSecret -}}
{{- end -}}
{{- define "sandboxd.secret.serveTls" -}}
{{- default (printf "%s-serve-tls" (include "sandboxd.fullname" .)) .Values.tls.serve.existingSecret -}}
{{- end -}}
{{- define "sandboxd.secret.gatewayTls" -}}
{{- default (printf "%s-gateway-tls" (include "sandboxd.fullname" .)) .Values.tls.gateway.existingSecret -}}
{{- end -}}
{{- define "sandboxd.secret.database" -}}
{{- if and .Values.database.existingSecret .Values.database.bundled.enabled -}}
{{- fail "database.existingSecret and database.bundled.enabled exclude each other" -}}
{{- else if .Values.database.bundled.enabled -}}
{{- printf "%s-postgresql" (include "sandboxd.fullname" .) -}}
{{- else -}}
{{- required "database.existingSecret must name a Secret with the URLs of a PostgreSQL, or database.bundled.enabled must be true" .Values.database.existingSecret -}}
{{- end -}}
{{- end -}}

{{/* Where builds by kaniko run. */}}
{{- define "sandboxd.kanikoNamespace" -}}
{{- default (printf "%s-images" .Release.Namespace | trunc 63 | trimSuffix "-") .Values.keptImages.kaniko.namespace -}}
{{- end -}}

{{- define "sandboxd.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Labels that select: call with (dict "root" $ "component" "serve"). They must never change. */}}
{{- define "sandboxd.selector" -}}
app.kubernetes.io/name: {{ include "sandboxd.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "sandboxd.labels" -}}
{{ include "sandboxd.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: sandboxd
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "sandboxd.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "sandboxd.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Further variables: call with the map. */}}
{{- define "sandboxd.settings" -}}
{{- range $name, $value := . }}
- name: SANDBOXD_{{ upper $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- define "sandboxd.env.common" -}}
- name: SANDBOXD_DATA_DIR
  value: /var/lib/sandboxd
- name: SANDBOXD_REPLICA
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: SANDBOXD_LOG_LEVEL
  value: {{ .Values.log.level }}
{{- with .Values.traces.endpoint }}
- name: SANDBOXD_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
- name: SANDBOXD_KUBERNETES_INSTANCE
  value: {{ include "sandboxd.instance" . | quote }}
- name: SANDBOXD_KUBERNETES_NAMESPACE
  value: {{ .Release.Namespace | quote }}
- name: SANDBOXD_KUBERNETES_NAMESPACE_PREFIX
  value: {{ .Values.namespacePrefix | quote }}
{{- end -}}

{{- define "sandboxd.env.database" -}}
- name: SANDBOXD_DATABASE_URL_FILE
  value: /etc/sandboxd/database/url
- name: SANDBOXD_DATABASE_POOL_SIZE
  value: {{ .Values.database.poolSize | quote }}
{{- end -}}

{{/* What serve is, and the sweep, which does part of its work. */}}
{{- define "sandboxd.env.serve" -}}
{{ include "sandboxd.env.common" . }}
{{ include "sandboxd.env.database" . }}
- name: SANDBOXD_BACKEND
  value: kubernetes
- name: SANDBOXD_CLI_DIALECT
  value: {{ .Values.gemini.cliDialect }}
- name: SANDBOXD_GATEWAY_URL
  value: https://{{ include "sandboxd.fullname" . }}-gateway.{{ .Release.Namespace }}.svc:{{ .Values.gateway.port }}
- name: SANDBOXD_GATEWAY_AUTHORITY_FILE
  value: /etc/sandboxd/gateway-authority/ca.crt
- name: SANDBOXD_KUBERNETES_TEMPLATE
  value: {{ .Values.sandboxTemplate | quote }}
- name: SANDBOXD_SANDBOX_TOKEN_KEY_FILE
  value: /etc/sandboxd/signing/sandbox-tokens.pem
- name: SANDBOXD_ERASURE_KEY_FILE
  value: /etc/sandboxd/signing/erasure-proofs.pem
- name: SANDBOXD_KEY_HASH_FILE
  value: /etc/sandboxd/signing/key-hashes.secret
- name: SANDBOXD_AUDIT_KEY_FILE
  value: /etc/sandboxd/signing/audit.pem
- name: SANDBOXD_AUDIT_TRUST_DIR
  value: /etc/sandboxd/audit-trust
- name: SANDBOXD_AUDIT_HEADS_DIR
  value: /var/lib/sandboxd-audit
- name: SANDBOXD_GEMINI_KEYS_SECRET
  value: {{ include "sandboxd.secret.apiKeys" . }}
{{- with include "sandboxd.secret.imagePulls" . }}
- name: SANDBOXD_IMAGE_PULLS_SECRET
  value: {{ . }}
{{- end }}
{{- with .Values.backups }}{{ if .location }}
- name: SANDBOXD_BACKUPS_LOCATION
  value: {{ .location | quote }}
- name: SANDBOXD_BACKUPS_EVERY_SECONDS
  value: {{ .everySeconds | int64 | quote }}
- name: SANDBOXD_BACKUPS_AFTER_TERMINATE
  value: {{ .afterTerminate | quote }}
- name: SANDBOXD_BACKUPS_AT_ONCE
  value: {{ .atOnce | int64 | quote }}
- name: SANDBOXD_BACKUPS_KEEP_LAST
  value: {{ .keepLast | int64 | quote }}
- name: SANDBOXD_BACKUPS_KEEP_DAILY
  value: {{ .keepDaily | int64 | quote }}
- name: SANDBOXD_BACKUPS_KEEP_WEEKLY
  value: {{ .keepWeekly | int64 | quote }}
- name: SANDBOXD_BACKUPS_IMMUTABLE_SECONDS
  value: {{ .immutableSeconds | int64 | quote }}
- name: SANDBOXD_BACKUPS_DRILL_EVERY_SECONDS
  value: {{ .drillEverySeconds | int64 | quote }}
- name: SANDBOXD_BACKUPS_DRILL_BYTES
  value: {{ .drillBytes | int64 | quote }}
{{- end }}{{ end }}
{{- include "sandboxd.snapshotSettings" . }}
{{- with .Values.keptImages }}{{ if .registry }}
- name: SANDBOXD_IMAGES_REGISTRY
  value: {{ .registry | quote }}
- name: SANDBOXD_IMAGES_REGISTRY_ADDRESS
  value: {{ .address | quote }}
- name: SANDBOXD_IMAGES_REGISTRY_PLAIN
  value: {{ .plain | quote }}
{{- if eq .kind "harbor" }}
{{- if not .credentials.existingSecret }}{{ fail "keptImages.credentials.existingSecret must name an account: Harbor's API needs one" }}{{ end }}
- name: SANDBOXD_IMAGES_REGISTRY_KIND
  value: harbor
- name: SANDBOXD_IMAGES_HARBOR_PROJECT_BYTES
  value: {{ ternary (mul .harbor.projectGigabytes 1000000000) .harbor.projectGigabytes (gt (int64 .harbor.projectGigabytes) 0) | quote }}
- name: SANDBOXD_IMAGES_HARBOR_UNTAGGED_DAYS
  value: {{ .harbor.untaggedDays | quote }}
- name: SANDBOXD_IMAGES_HARBOR_ACCOUNT_DAYS
  value: {{ .harbor.accountDays | quote }}
- name: SANDBOXD_IMAGES_HARBOR_GC_SCHEDULE
  value: {{ .harbor.gcSchedule | quote }}
{{- end }}
- name: SANDBOXD_IMAGES_REPOSITORY_PREFIX
  value: {{ .repositoryPrefix | quote }}
{{- if .authority.existingSecret }}
- name: SANDBOXD_IMAGES_REGISTRY_AUTHORITY_FILE
  value: /etc/sandboxd/images-authority/ca.crt
{{- end }}
{{- if .credentials.existingSecret }}
- name: SANDBOXD_IMAGES_REGISTRY_USER
  valueFrom: {secretKeyRef: {name: {{ .credentials.existingSecret }}, key: username}}
- name: SANDBOXD_IMAGES_REGISTRY_PASSWORD_FILE
  value: /etc/sandboxd/images-registry/password
{{- end }}
- name: SANDBOXD_IMAGES_ARCHITECTURE
  value: {{ .architecture }}
- name: SANDBOXD_IMAGES_SECRETS
  value: {{ .secrets }}
{{- if .signing.existingSecret }}
- name: SANDBOXD_IMAGES_SIGNING_KEY_FILE
  value: /etc/sandboxd/images-signing/signing.pem
{{- end }}
{{- if .signing.trustSecret }}
- name: SANDBOXD_IMAGES_SIGNING_TRUST_DIR
  value: /etc/sandboxd/images-trust
{{- end }}
- name: SANDBOXD_IMAGES_SIGNATURES
  value: {{ .signing.policy }}
- name: SANDBOXD_IMAGES_SPOOL_DIR
  value: /var/lib/sandboxd-images/spool
- name: SANDBOXD_IMAGES_SPOOL_BYTES
  value: {{ mul .spoolGibibytes 1073741824 | quote }}
- name: SANDBOXD_IMAGES_CACHE_DIR
  value: /var/lib/sandboxd-images/bases
- name: SANDBOXD_IMAGES_CACHE_BYTES
  value: {{ mul .cacheGibibytes 1073741824 | quote }}
{{- if eq .builder "kaniko" }}
- name: SANDBOXD_IMAGES_BUILDER
  value: kaniko
- name: SANDBOXD_IMAGES_KANIKO_NAMESPACE
  value: {{ include "sandboxd.kanikoNamespace" $ }}
- name: SANDBOXD_IMAGES_KANIKO_IMAGE
  value: {{ required "keptImages.kaniko.image must name an image with kaniko's executor" .kaniko.image | quote }}
- name: SANDBOXD_IMAGES_KANIKO_AGENT_IMAGE
  value: {{ required "keptImages.kaniko.agentImage must name the agent's image" .kaniko.agentImage | quote }}
- name: SANDBOXD_IMAGES_KANIKO_SECRET
  value: {{ .kaniko.secret | quote }}
- name: SANDBOXD_IMAGES_KANIKO_REGISTRY
  value: {{ .kaniko.registry | quote }}
- name: SANDBOXD_IMAGES_KANIKO_HOST_USERS
  value: {{ .kaniko.hostUsers | quote }}
{{- end }}
{{- end }}{{ end }}
- name: SANDBOXD_REGISTRATION
  value: {{ .Values.callers.registration }}
- name: SANDBOXD_JWT_ISSUER
  value: {{ .Values.callers.issuer | quote }}
- name: SANDBOXD_JWT_AUDIENCE
  value: {{ .Values.callers.audience | quote }}
{{- if .Values.callers.jwksUrl }}
- name: SANDBOXD_JWT_JWKS_URL
  value: {{ .Values.callers.jwksUrl | quote }}
{{- if .Values.callers.jwksAuthority }}
- name: SANDBOXD_JWT_JWKS_AUTHORITY_FILE
  value: /etc/sandboxd/jwks-authority/ca.crt
{{- end }}
{{- else }}
- name: SANDBOXD_JWT_KEYS_FILE
  value: /etc/sandboxd/callers/callers.json
{{- end }}
{{- end -}}

{{- define "sandboxd.mounts.serve" -}}
- {name: data, mountPath: /var/lib/sandboxd}
- {name: tmp, mountPath: /tmp}
- {name: audit-heads, mountPath: /var/lib/sandboxd-audit}
- {name: database, mountPath: /etc/sandboxd/database, readOnly: true}
- {name: gateway-authority, mountPath: /etc/sandboxd/gateway-authority, readOnly: true}
- {name: agent-authority, mountPath: /var/lib/sandboxd/pki, readOnly: true}
- {name: signing, mountPath: /etc/sandboxd/signing, readOnly: true}
- {name: audit-trust, mountPath: /etc/sandboxd/audit-trust, readOnly: true}
{{- with .Values.keptImages }}{{ if .registry }}
- {name: images, mountPath: /var/lib/sandboxd-images}
{{- if .credentials.existingSecret }}
- {name: images-registry, mountPath: /etc/sandboxd/images-registry, readOnly: true}
{{- end }}
{{- if .authority.existingSecret }}
- {name: images-authority, mountPath: /etc/sandboxd/images-authority, readOnly: true}
{{- end }}
{{- if .signing.existingSecret }}
- {name: images-signing, mountPath: /etc/sandboxd/images-signing, readOnly: true}
{{- end }}
{{- if .signing.trustSecret }}
- {name: images-trust, mountPath: /etc/sandboxd/images-trust, readOnly: true}
{{- end }}
{{- end }}{{ end }}
{{- if not .Values.callers.jwksUrl }}
- {name: callers, mountPath: /etc/sandboxd/callers, readOnly: true}
{{- else if .Values.callers.jwksAuthority }}
- {name: jwks-authority, mountPath: /etc/sandboxd/jwks-authority, readOnly: true}
{{- end }}
{{- end -}}

{{- define "sandboxd.volumes.serve" -}}
- {name: data, emptyDir: {sizeLimit: 1Gi}}
- {name: tmp, emptyDir: {sizeLimit: 1Gi}}
- name: audit-heads
  {{- if .Values.serve.auditHeads.existingClaim }}
  persistentVolumeClaim: {claimName: {{ .Values.serve.auditHeads.existingClaim }}}
  {{- else }}
  emptyDir: {sizeLimit: 1Gi}
  {{- end }}
{{ include "sandboxd.volumes.database" . }}
- name: gateway-authority
  secret:
    secretName: {{ include "sandboxd.secret.gatewayTls" . }}
    items: [{key: ca.crt, path: ca.crt}]
- name: agent-authority
  secret: {secretName: {{ include "sandboxd.secret.agentAuthority" . }}, defaultMode: 0440}
- name: signing
  secret: {secretName: {{ include "sandboxd.secret.signing" . }}, defaultMode: 0440}
- name: audit-trust
  secret: {secretName: {{ include "sandboxd.secret.auditTrust" . }}, defaultMode: 0440}
{{- with .Values.keptImages }}{{ if .registry }}
- {name: images, emptyDir: {sizeLimit: {{ add .spoolGibibytes .cacheGibibytes 4 }}Gi}}
{{- if .credentials.existingSecret }}
- name: images-registry
  secret:
    secretName: {{ .credentials.existingSecret }}
    defaultMode: 0440
    items: [{key: password, path: password}]
{{- end }}
{{- if .authority.existingSecret }}
- name: images-authority
  secret:
    secretName: {{ .authority.existingSecret }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- if .signing.existingSecret }}
- name: images-signing
  secret:
    secretName: {{ .signing.existingSecret }}
    defaultMode: 0440
    items: [{key: signing.pem, path: signing.pem}]
{{- end }}
{{- if .signing.trustSecret }}
- name: images-trust
  secret: {secretName: {{ .signing.trustSecret }}, defaultMode: 0440}
{{- end }}
{{- end }}{{ end }}
{{- if not .Values.callers.jwksUrl }}
- name: callers
  secret:
    secretName: {{ include "sandboxd.secret.callers" . }}
    items: [{key: {{ .Values.callers.secretKey }}, path: callers.json}]
{{- else if .Values.callers.jwksAuthority }}
- name: jwks-authority
  configMap: {name: {{ include "sandboxd.fullname" . }}-jwks-authority}
{{- end }}
{{- end -}}

{{- define "sandboxd.volumes.database" -}}
- name: database
  secret:
    secretName: {{ include "sandboxd.secret.database" . }}
    defaultMode: 0440
    items: [{key: {{ .Values.database.urlKey }}, path: url}]
{{- end -}}

{{/* Where pods of a role go: call with (dict "root" $ "component" "serve" "values" .Values.serve). */}}
{{- define "sandboxd.placement" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- with .values.affinity }}
affinity: {{ toJson . }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
topologySpreadConstraints:
{{- if .values.topologySpreadConstraints }}
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
{{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "sandboxd.selector" . | nindent 8 }}
{{- end }}
{{- end -}}

{{/* startup, liveness and readiness over a role's web port, by https: call with the port's name. */}}
{{- define "sandboxd.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: {{ . }}, scheme: HTTPS}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: {{ . }}, scheme: HTTPS}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: {{ . }}, scheme: HTTPS}
  periodSeconds: 3
  timeoutSeconds: 3
  failureThreshold: 2
{{- end -}}

{{/* Whether VolumeSnapshots are worked on: not empty is yes. */}}
{{- define "sandboxd.snapshots" -}}
{{- if or (eq .Values.backups.method "snapshots") .Values.backups.snapshots.enabled -}}yes{{- end -}}
{{- end }}

{{/* What serve and operator know of snapshots. */}}
{{- define "sandboxd.snapshotSettings" -}}
{{- if include "sandboxd.snapshots" . }}
- name: SANDBOXD_BACKUPS_METHOD
  value: {{ .Values.backups.method }}
- name: SANDBOXD_KUBERNETES_SNAPSHOTS
  value: "true"
{{- end }}
{{- end }}
