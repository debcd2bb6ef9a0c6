{{/*
The pod template of the head or of a worker group.
dict: root, name (head, gateway, router, experts), settings (its part of the values), resources.
*/}}
{{- define "expertmesh.podTemplate" -}}
{{- $root := .root -}}
{{- $values := .root.Values -}}
metadata:
  labels:
    {{- include "expertmesh.selectorLabels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .name }}
  {{- with .settings.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  restartPolicy: Never
  # The autoscaler beside the head asks Kubernetes for pods; nobody else talks to it.
  automountServiceAccountToken: {{ and (eq .name "head") $values.rayAutoscaler.enabled }}
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
  {{- with $values.serviceAccount.name }}
  serviceAccountName: {{ . }}
  {{- end }}
  {{- with $values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .settings.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .settings.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  securityContext:
    {{- toYaml $values.podSecurityContext | nindent 4 }}
  {{- $selector := deepCopy (default dict .settings.nodeSelector) }}
  {{- with dig "gpu" "kind" "" .settings }}
  {{- $_ := set $selector $.settings.gpu.kindLabel . }}
  {{- end }}
  {{- with $selector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .settings.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .settings.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .settings.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range . }}
    {{- $labels := merge (dict "app.kubernetes.io/component" $.name) (include "expertmesh.selectorLabels" $root | fromYaml) }}
    - {{- toYaml (merge . (dict "labelSelector" (dict "matchLabels" $labels))) | nindent 6 }}
    {{- end }}
  {{- end }}
  {{- if $values.weights.init.enabled }}
  initContainers:
    - name: weights
      image: {{ $values.weights.init.image }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      {{- with $values.weights.init.command }}
      command:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.weights.init.args }}
      args:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.weights.init.env }}
      env:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- toYaml $values.securityContext | nindent 8 }}
      volumeMounts:
        - name: weights
          mountPath: {{ $values.weights.mountPath }}
  {{- end }}
  containers:
    - name: ray-{{ .name }}
      image: {{ include "expertmesh.image" $root }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      securityContext:
        {{- toYaml $values.securityContext | nindent 8 }}
      resources:
        {{- toYaml .resources | nindent 8 }}
      ports:
        {{- if eq .name "head" }}
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        - {name: client, containerPort: 10001}
        {{- end }}
        - {name: metrics, containerPort: 8080}
        - {name: serve, containerPort: {{ include "expertmesh.httpPort" $root }}}
        - {name: serve-grpc, containerPort: {{ include "expertmesh.grpcPort" $root }}}
      env:
        # Ray would take priority from its workers once they have started, and replicas that start would disturb.
        - {name: RAY_worker_niceness, value: "0"}
        {{- if and (eq .name "head") $values.monitoring.grafana.host }}
        {{- with $values.monitoring.grafana }}
        - {name: RAY_GRAFANA_HOST, value: {{ .host | quote }}}
        - {name: RAY_GRAFANA_IFRAME_HOST, value: {{ default .host .iframeHost | quote }}}
        {{- with .prometheusHost }}
        - {name: RAY_PROMETHEUS_HOST, value: {{ . | quote }}}
        {{- end }}
        - {name: RAY_PROMETHEUS_NAME, value: {{ .datasource | quote }}}
        # The panels that Ray's page of Serve embeds are those of this dashboard then.
        - {name: RAY_GRAFANA_SERVE_DASHBOARD_UID, value: expertmesh}
        {{- end }}
        {{- end }}
        {{- with $values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- with .settings.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $values.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        - {name: shm, mountPath: /dev/shm}
        - {name: ray, mountPath: /tmp/ray}
        {{- if or $values.weights.existingClaim $values.weights.hostPath $values.weights.init.enabled }}
        - name: weights
          mountPath: {{ $values.weights.mountPath }}
          readOnly: true
          {{- with $values.weights.subPath }}
          subPath: {{ . }}
          {{- end }}
        {{- end }}
        {{- if and $values.apiKeys.enabled (eq .name "gateway") }}
        - {name: api-keys, mountPath: /etc/expertmesh/api-keys, readOnly: true}
        {{- end }}
        {{- if $values.internal.clusterSecret }}
        - {name: cluster-secret, mountPath: /etc/expertmesh/cluster-secret, readOnly: true}
        {{- end }}
        {{- if $values.internal.tlsSecret }}
        - {name: tls, mountPath: /etc/expertmesh/tls, readOnly: true}
        {{- end }}
        {{- with $values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: shm
      emptyDir:
        medium: Memory
        sizeLimit: {{ $values.shmSize }}
    - name: ray
      emptyDir: {}
    {{- if $values.weights.existingClaim }}
    - name: weights
      persistentVolumeClaim:
        claimName: {{ $values.weights.existingClaim }}
        readOnly: true
    {{- else if $values.weights.hostPath }}
    - name: weights
      hostPath:
        path: {{ $values.weights.hostPath }}
        type: Directory
    {{- else if $values.weights.init.enabled }}
    - name: weights
      emptyDir:
        sizeLimit: {{ $values.weights.init.sizeLimit }}
    {{- end }}
    {{- if and $values.apiKeys.enabled (eq .name "gateway") }}
    - name: api-keys
      secret:
        secretName: {{ include "expertmesh.apiKeysSecret" $root }}
        defaultMode: 0440
    {{- end }}
    {{- with $values.internal.clusterSecret }}
    - name: cluster-secret
      secret:
        secretName: {{ . }}
        defaultMode: 0440
    {{- end }}
    {{- with $values.internal.tlsSecret }}
    - name: tls
      secret:
        secretName: {{ . }}
        defaultMode: 0440
    {{- end }}
    {{- with $values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
