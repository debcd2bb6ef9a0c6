{{/*
The config that Serve deploys: what `expertmesh build` makes of the same deployment file. Numbers of replicas, limits
and autoscaling stand under `deployments`, where Serve changes them without building the application anew.
*/}}
{{- define "expertmesh.serveConfig" -}}
{{- $args := omit (deepCopy .Values.deployment) "limits" "autoscaling" -}}
{{- $deployments := list -}}
{{- range $name := include "expertmesh.groups" . | fromJsonArray -}}
{{- $part := default dict (index $args $name) -}}
{{- $group := index $.Values.groups $name -}}
{{- $perPod := int $group.replicasPerPod -}}
{{- $replicas := dig "replicas" 1 $part | int -}}
{{- $_ := set $part "replicas" 1 -}}
{{- $_ := set $part "resources" (merge (dict (printf "expertmesh-%s" $name) 1) (default dict $part.resources)) -}}
{{- if ne $name "gateway" -}}
{{- $gpus := int (dig "gpu" "count" 0 $group) -}}
{{- if and $gpus (not (hasKey $part "gpus")) }}{{ $_ := set $part "gpus" (divf $gpus $perPod) }}{{ end -}}
{{- with dig "limits" "cpu" "" $group.resources -}}
{{- $threads := div (include "expertmesh.wholeCpus" . | int) $perPod -}}
{{- if and (gt (int $threads) 0) (not (hasKey $part "threads")) }}{{ $_ := set $part "threads" (int $threads) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $_ := set $args $name $part -}}
{{- $deployment := dict "name" $name "num_replicas" $replicas -}}
{{- if eq $name "gateway" -}}
{{- $live := dict "limits" (default dict $.Values.deployment.limits) "autoscaling" (default dict $.Values.deployment.autoscaling) -}}
{{- $_ := set $deployment "user_config" $live -}}
{{- end -}}
{{- $deployments = append $deployments $deployment -}}
{{- end -}}
{{- $_ := set $args "counts_from_serve" true -}}
{{- if .Values.apiKeys.enabled -}}
{{- $_ := set $args "access" (merge (dict "key_file" "/etc/expertmesh/api-keys/keys") (default dict $args.access)) -}}
{{- end -}}
{{- $security := default dict $args.security -}}
{{- if .Values.internal.clusterSecret -}}
{{- $_ := set $security "cluster_secret_file" "/etc/expertmesh/cluster-secret/secret" -}}
{{- end -}}
{{- if .Values.internal.tlsSecret -}}
{{- $files := dict "cert_file" "/etc/expertmesh/tls/tls.crt" "key_file" "/etc/expertmesh/tls/tls.key" "ca_file" "/etc/expertmesh/tls/ca.crt" -}}
{{- $_ := set $security "internal_tls" (merge $files (default dict $security.internal_tls)) -}}
{{- end -}}
{{- with $security }}{{ $_ := set $args "security" . }}{{ end -}}
{{- $_ := set $args "http" (merge (dict "host" "0.0.0.0" "port" (include "expertmesh.httpPort" . | int)) (default dict $args.http)) -}}
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: {{ include "expertmesh.httpPort" . }}
grpc_options:
  port: {{ include "expertmesh.grpcPort" . }}
  grpc_servicer_functions:
    - expertmesh.actors.gateway.serve_proxy.add_inference
    - expertmesh.actors.gateway.serve_proxy.add_cluster
    - expertmesh.actors.gateway.serve_proxy.add_health
applications:
  - name: {{ .Values.deployment.name }}
    route_prefix: /
    import_path: expertmesh.actors.app:build
    external_scaler_enabled: true
    args:
      {{- toYaml $args | nindent 6 }}
    deployments:
      {{- toYaml $deployments | nindent 6 }}
{{- end -}}
